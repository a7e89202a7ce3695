"""`helios tune MODEL --drafter`: a draft head for any model, trained on text that the model made itself.

It reads the model's hidden states at a few depths, and learns full depth's distribution for each of the first
tokens of a draft. The model stays as it is.
"""

import os
import time
from collections.abc import Callable
from pathlib import Path

import msgspec
import torch

from shard.drafts.head_file import check_description, read_description
from shard.models.shape import Shape, read_config, shape_of
from shard.precision import precision_of
from shard.tune import folder as exit_folder
from shard.tune.batches import Source, places_of
from shard.tune.draft_head import DraftHead, first_draft_weights
from shard.tune.draft_training import Acceptance, DraftStudent, DraftTrainer, acceptance_of
from shard.tune.drafter_folder import load_drafter, save_drafter, served_head
from shard.tune.layers import Backbone, read_backbone
from shard.tune.loss import Measured
from shard.tune.preflight import check
from shard.tune.progress import Progress
from shard.tune.sources import make_sources
from shard.tune.tune_config import Ask
from shard.tune.vocabulary import Fixed

SAVE_STEPS = 50
SCALE_PASSAGES = 64  # passages whose states give the first weights their scale
EVALUATION_PASSAGES = 200  # held-out passages of each text
CHECKPOINT = "drafter.training"


class DrafterResult(msgspec.Struct, frozen=True):
    """What was trained, and acceptance by text held out."""

    num_steps: int
    seconds: float
    num_training_tokens: dict[str, int]
    acceptance: dict[str, Acceptance]


class Spent(msgspec.Struct, frozen=True):
    """What an interrupted training has taken already."""

    seconds: float


def tune_drafter(ask: Ask, progress: Progress) -> DrafterResult:
    """Make `drafter.safetensors`. Raises `ValueError`, `OSError` or `MemoryError` with one sentence."""
    shape = shape_of(read_config(ask.model))
    check(ask, shape)
    vocabulary = _check_vocabulary(ask, shape)
    torch.set_num_threads(ask.machine.num_threads or os.cpu_count() or 1)
    sources = make_sources(ask, shape, progress)
    device = torch.device(ask.machine.device)
    back = read_backbone(ask.model, shape.max_positions, device)
    rows = back.head if vocabulary is None else exit_folder.read_vocabulary(vocabulary, device)
    to = torch.empty(0, dtype=precision_of(ask.machine.device, ask.machine.dtype).compute, device=device)
    head = _first_head(ask, back, None if vocabulary is None else rows, sources)
    student = DraftStudent(back, [head], Fixed(rows), to, head, back.embedding())
    ask.out.mkdir(parents=True, exist_ok=True)
    seconds, steps = _train(ask, student, sources, progress)
    served = served_head(head)
    acceptance = _acceptance(msgspec.structs.replace(student, heads=[served], head=served), rows, sources)
    named = None if vocabulary is None else os.path.relpath(vocabulary, ask.out)
    save_drafter(ask.out, served, {text: found.by_token for text, found in acceptance.items()}, named)
    (ask.out / CHECKPOINT).unlink(missing_ok=True)
    tokens = {
        source.name: sum(source.cache.num_targets(passage) for passage in source.training)
        for source in sources
    }
    result = DrafterResult(steps, round(seconds, 1), tokens, acceptance)
    (ask.out / "drafter.json").write_bytes(msgspec.json.format(msgspec.json.encode(result), indent=1) + b"\n")
    return result


def depths_of(num_layers: int) -> list[int]:
    """The depths at which a head reads states unless told: a quarter, half and three quarters."""
    return sorted({max(1, num_layers * part // 4) for part in (1, 2, 3)})


def _check_vocabulary(ask: Ask, shape: Shape) -> Path | None:
    """The file of the low-rank vocabulary that proposes; None: the LM head alone decides."""
    spec, path = ask.wanted.spec, ask.wanted.vocabulary
    if spec.rank is None:
        return None
    if spec.rerank is None:
        raise ValueError("A draft head's low-rank vocabulary only proposes: --head-rerank is needed as well.")
    if not path.is_file():
        raise ValueError(f"There is no {path}: name the --vocabulary of exits tuned before.")
    found = exit_folder.read_vocabulary(path, torch.device("cpu")).shape
    if found != (shape.vocab_size, spec.rank):
        wanted = f"({shape.vocab_size}, {spec.rank})"
        raise ValueError(f"The vocabulary of {path} is of shape {tuple(found)}, not {wanted}.")
    return path


@torch.no_grad()
def _first_head(
    ask: Ask, back: Backbone, vocabulary: torch.Tensor | None, sources: list[Source]
) -> DraftHead:
    """The head to go on from, or an untrained one, for the scale that states at its deepest depth have."""
    depths = ask.wanted.spec.layers
    if ask.wanted.init is not None:
        return _given_head(ask, ask.wanted.init, back)
    some = places_of(sources, "training")[:SCALE_PASSAGES]
    states = [sources[source].cache.states(depths[-1], passage).float() for source, passage in some]
    scale = float(torch.cat(states).square().mean().sqrt())
    weights = first_draft_weights(back, depths, vocabulary, scale)
    return DraftHead(depths, back.shape.num_layers, weights, ask.wanted.spec.rerank)


def _given_head(ask: Ask, init: Path, back: Backbone) -> DraftHead:
    """The head of another folder. Raises `ValueError` if it is not of the kind asked for."""
    spec, described = ask.wanted.spec, read_description(init)
    check_description(described, back.shape)
    if (described.depths, described.rerank) != (spec.layers, spec.rerank):
        raise ValueError(
            f"The draft head of {init} is not the one asked for: it reads behind {described.depths}, and the "
            f"LM head decides on {described.rerank or 'all'} tokens."
        )
    return load_drafter(init, back.head.device)


def _train(ask: Ask, student: DraftStudent, sources: list[Source], progress: Progress) -> tuple[float, int]:
    """Train to the end of steps or of time; seconds and steps it took, also before an interruption."""
    wanted, path = ask.wanted, ask.out / CHECKPOINT
    trainer, started = DraftTrainer(student, sources, wanted.plan, wanted.seconds), time.perf_counter()
    if wanted.resume and path.exists():
        before = trainer.resume(path, Spent).seconds
        started -= before
        trainer.started = started
    tell = _teller(progress, wanted.plan.num_steps)
    if not trainer.is_over:
        for measured in trainer.run():
            tell(trainer.step, measured)
            is_last = trainer.is_over or trainer.step == wanted.plan.num_steps
            if trainer.step % SAVE_STEPS == 0 or is_last:
                trainer.save(path, Spent(time.perf_counter() - started))
            if is_last:
                break
    for parameter in student.parameters.values():
        parameter.requires_grad_(False)
    return time.perf_counter() - started, trainer.step


def _acceptance(student: DraftStudent, rows: torch.Tensor, sources: list[Source]) -> dict[str, Acceptance]:
    """Acceptance on held-out passages, by text and by how their answers were drawn."""
    found = {}
    for number, source in enumerate(sources):
        for kind, passages in source.kinds(source.held_out[:EVALUATION_PASSAGES]).items():
            places = [(number, passage) for passage in passages]
            found[f"{source.name}, {kind}"] = acceptance_of(student, rows, sources, places)
    return found


def _teller(progress: Progress, num_steps: int) -> Callable[[int, dict[int, Measured]], None]:
    def tell(step: int, measured: dict[int, Measured]) -> None:
        parts = (
            f"token {place}: loss {float(found.loss):.2f}, {float(found.agreement):.0%} equal"
            for place, found in measured.items()
        )
        progress.tell("training the drafter", step, num_steps, " · ".join(parts))

    return tell
