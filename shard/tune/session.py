"""From what a person asks for to a tuning: which model, which text, where things are kept."""

import hashlib
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import msgspec
import torch

from shard.exits import HeadKind
from shard.messages import ShardConfig
from shard.model import DTYPES
from shard.models.checkpoint import digest as model_digest
from shard.models.shape import Shape, read_config, shape_of
from shard.runner import ModelRunner
from shard.tune.batches import Source
from shard.tune.costs import Costs, measure_costs
from shard.tune.given_text import read_text
from shard.tune.heads import HeadSpec
from shard.tune.layers import read_backbone
from shard.tune.loss import Measured
from shard.tune.pipeline import Result, Tuning, Wanted
from shard.tune.progress import Progress
from shard.tune.prompts import read_prompts
from shard.tune.self_text import Generation, generate
from shard.tune.states import cache_bytes, open_or_make
from shard.tune.text import Passage, digest

PROBING_OF = 16  # one passage in so many teaches the probes, and no head
TRAINING_BYTES_PER_PARAMETER = 16  # weight, gradient and two moments, in float32
ACTIVATION_BYTES = 2 << 30  # of a step
KV_BYTES = 2 << 30  # for making text
MAX_TOKENS = 4096  # of a passage, prompt and answer


class Machine(msgspec.Struct, frozen=True):
    """What it runs on, and where it keeps things."""

    device: str
    dtype: str
    num_threads: int | None
    work: Path  # text, hidden states


class Text(msgspec.Struct, frozen=True):
    """What it learns on."""

    file: Path | None  # None: the model's own
    prompts: list[str]  # lists or files, for its own text
    compared: list[str]  # others, on which it is only measured
    num_answers: int  # of each list; text of the model's own
    max_new_tokens: int
    seed: int


class Ask(msgspec.Struct, frozen=True):
    """A whole tuning, as a person asks for it."""

    model: Path
    out: Path
    machine: Machine
    text: Text
    wanted: Wanted


class Made(msgspec.Struct, frozen=True):
    """A tuning that is done: the exit folder is where it was asked for."""

    ask: Ask
    result: Result


def tune_exits(ask: Ask, progress: Progress) -> Made:
    """Make the exit folder. Raises `ValueError`, `OSError` or `MemoryError` with one sentence."""
    shape = shape_of(read_config(ask.model))
    check(ask, shape)
    torch.set_num_threads(ask.machine.num_threads or os.cpu_count() or 1)
    sources = make_sources(ask, shape, progress)
    back = read_backbone(ask.model, shape.max_positions, torch.device(ask.machine.device))
    to = torch.empty(0, dtype=DTYPES[ask.machine.dtype], device=ask.machine.device)
    result = Tuning(back, sources, ask.wanted, ask.out, to).run(_teller(progress))
    (ask.out / "tuning.json").write_bytes(msgspec.json.format(msgspec.json.encode(result), indent=1) + b"\n")
    return Made(ask, result)


def measure(ask: Ask) -> Costs:
    """What layers and heads cost here, by the engine's own parts."""
    config = ShardConfig(
        model=str(ask.model),
        device=ask.machine.device,
        dtype=ask.machine.dtype,
        kv_cache_bytes=1 << 28,
        num_threads=ask.machine.num_threads,
        exit_mode="per_row",
        exits=str(ask.out),
    )
    return measure_costs(ModelRunner(config))


def check(ask: Ask, shape: Shape) -> None:
    """Refuse before any work. Raises `ValueError`, `MemoryError` or `OSError`."""
    layers, rank = ask.wanted.spec.layers, ask.wanted.spec.rank
    for layer in layers:
        if not 1 <= layer < shape.num_layers:
            raise ValueError(f"Exit layer {layer} is out of range: between 1 and {shape.num_layers - 1}.")
    if not layers or layers != sorted(set(layers)):
        raise ValueError(f"Exit layers must be given once each and rise, not {layers}.")
    if ask.wanted.spec.kind is HeadKind.NORM and rank is None:
        raise ValueError("A norm head has nothing to learn without a --head-rank: it is the model's own.")
    if ask.wanted.freeze_vocabulary and (ask.wanted.init is None or rank is None):
        raise ValueError(
            "--freeze-vocabulary needs --init, a folder with low-rank exits, and their --head-rank."
        )
    if rank is not None and not 1 <= rank <= shape.hidden_size:
        raise ValueError(f"Head rank {rank} is out of range: between 1 and {shape.hidden_size}.")
    if ask.text.max_new_tokens + 2 > shape.max_positions:
        raise ValueError(f"The model holds {shape.max_positions} tokens, fewer than an answer was to have.")
    if ask.machine.device == "cpu":
        needed, there = training_bytes(ask.wanted.spec, shape), free_memory()
        if needed > there:
            raise MemoryError(
                f"Tuning takes about {needed >> 20} MiB of memory, and {there >> 20} MiB are free: "
                "give fewer exit layers, a smaller head, or a smaller --head-rank."
            )


def training_bytes(spec: HeadSpec, shape: Shape) -> int:
    """Memory that training takes, about."""
    hidden = shape.hidden_size
    head = {"norm": 0, "mlp": 8 * hidden * hidden, "block": 13 * hidden * hidden}[spec.kind]
    parameters = len(spec.layers) * (head + (spec.rank or 0) * hidden) + (spec.rank or 0) * shape.vocab_size
    model = 6 * shape.vocab_size * hidden  # the LM head, in two precisions
    return TRAINING_BYTES_PER_PARAMETER * parameters + model + ACTIVATION_BYTES


def make_sources(ask: Ask, shape: Shape, progress: Progress) -> list[Source]:
    """Texts and their hidden states, made where the work folder does not have them."""
    runner = _Once(lambda: ModelRunner(_config(ask, shape)))
    texts = _texts(ask, shape, runner, progress)
    return [_source(ask, name, passages, runner, progress) for name, passages in texts.items()]


def make_texts(ask: Ask, shape: Shape, progress: Progress) -> dict[str, list[Passage]]:
    """The texts alone, by name."""
    return _texts(ask, shape, _Once(lambda: ModelRunner(_config(ask, shape))), progress)


def _texts(
    ask: Ask, shape: Shape, runner: Callable[[], ModelRunner], progress: Progress
) -> dict[str, list[Passage]]:
    if ask.text.file is not None:
        return {ask.text.file.stem: read_text(ask.model, ask.text.file, shape.max_positions)}
    names = dict.fromkeys([*ask.text.prompts, *ask.text.compared])
    return {_stem(name): _own_text(ask, name, runner, progress) for name in names}


def _own_text(ask: Ask, name: str, runner: Callable[[], ModelRunner], progress: Progress) -> list[Passage]:
    """The model's answers to one list of prompts."""
    text = ask.text
    wanted = Generation(read_prompts(name), text.num_answers, text.max_new_tokens, seed=text.seed)
    key = msgspec.json.encode([model_digest(ask.model), ask.machine.dtype, wanted])
    folder = ask.machine.work / "text" / f"{_stem(name)}-{named(key)}"
    passages: list[Passage] = []
    for wave in generate(runner, ask.model, wanted, folder):
        passages += wave
        progress.tell(f"text of {_stem(name)}", len(passages), text.num_answers)
    return [passage for passage in passages if passage.num_answer_tokens > 0]


def named(key: bytes) -> str:
    """A short name for what is told apart by `key`."""
    return hashlib.sha256(key).hexdigest()[:12]


def _config(ask: Ask, shape: Shape) -> ShardConfig:
    """The model at full depth, as it answers prompts and reads text."""
    return ShardConfig(
        model=str(ask.model),
        device=ask.machine.device,
        dtype=ask.machine.dtype,
        kv_cache_bytes=KV_BYTES,
        max_total_tokens=min(shape.max_positions, MAX_TOKENS),
        max_batch_size=512,
        max_batch_tokens=4096,
        num_threads=ask.machine.num_threads,
    )


def _stem(name: str) -> str:
    """What a list of prompts is called, wherever its file lies."""
    return Path(name).stem


class _Once:
    """A runner that is made when it is first asked for."""

    def __init__(self, make: Callable[[], ModelRunner]):
        self._make = make
        self._made: ModelRunner | None = None

    def __call__(self) -> ModelRunner:
        if self._made is None:
            self._made = self._make()
        return self._made


def _source(
    ask: Ask, name: str, passages: list[Passage], runner: Callable[[], ModelRunner], progress: Progress
) -> Source:
    """A text with its hidden states; of the passages not held out, one in sixteen is kept for the probes."""
    shape = shape_of(read_config(ask.model))
    layers = [*ask.wanted.spec.layers, shape.num_layers]
    key = f"{model_digest(ask.model)} {ask.machine.dtype} {layers} {digest(passages)}"
    folder = ask.machine.work / "states" / f"{name}-{named(key.encode())}"
    _check_disk(ask.machine.work, cache_bytes(passages, len(layers), shape.hidden_size), folder)

    def tell(done: int) -> None:
        progress.tell(f"states of {name}", done, len(passages))

    cache = open_or_make(folder, key, passages, layers, runner, tell)
    held_out = [i for i, passage in enumerate(passages) if passage.held_out]
    rest = [i for i, passage in enumerate(passages) if not passage.held_out]
    learns = ask.text.file is not None or name in map(_stem, ask.text.prompts)
    return Source(
        name,
        cache,
        [i for n, i in enumerate(rest) if n % PROBING_OF] if learns else [],
        rest[::PROBING_OF] if learns else [],
        held_out or rest,
        frozenset(i for i, passage in enumerate(passages) if passage.sampled),
    )


def _check_disk(work: Path, needed: int, folder: Path) -> None:
    work.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(work).free
    if not (folder / "index.json").exists() and needed > free:
        raise OSError(
            f"Hidden states would take {needed >> 20} MiB in {work}, where {free >> 20} MiB are free: "
            "name another --work folder, or give fewer prompts."
        )


def free_memory() -> int:
    """Bytes that can be taken without swapping."""
    for line in Path("/proc/meminfo").read_text().splitlines() if Path("/proc/meminfo").exists() else []:
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) << 10
    return 1 << 62  # not known here


def _teller(progress: Progress) -> Callable[[str, int, int, dict[int, Measured]], None]:
    def tell(stage: str, step: int, total: int, measured: dict[int, Measured]) -> None:
        parts = (
            f"{layer}: loss {float(it.loss):.2f}, {float(it.agreement):.0%} equal"
            for layer, it in measured.items()
        )
        progress.tell(f"training {stage}", step, total, " · ".join(parts))

    return tell
