"""Checks before any work that a tuning is possible; refuses in one sentence."""

import shutil
from pathlib import Path

from shard.exits.exit_heads import HeadKind
from shard.host_memory import available_bytes
from shard.models.shape import Shape
from shard.tune.heads import HeadSpec
from shard.tune.tune_config import Ask

TRAINING_BYTES_PER_PARAMETER = 16  # weight, gradient and two moments, in float32
ACTIVATION_BYTES = 2 << 30  # activations of a step


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
    if ask.wanted.spec.rerank is not None and rank is None:
        raise ValueError("--head-rerank needs a --head-rank, which proposes what the LM head decides on.")
    if ask.text.max_new_tokens + 2 > shape.max_positions:
        raise ValueError(f"The model holds {shape.max_positions} tokens, fewer than an answer was to have.")
    if ask.machine.device == "cpu":
        needed, there = training_bytes(ask.wanted.spec, shape), available_bytes()
        if there is not None and needed > there:
            raise MemoryError(
                f"Tuning takes about {needed >> 20} MiB of memory, and {there >> 20} MiB are free: "
                "give fewer exit layers, a smaller head, or a smaller --head-rank."
            )


def training_bytes(spec: HeadSpec, shape: Shape) -> int:
    """Approximate memory of training."""
    hidden = shape.hidden_size
    head = {"norm": 0, "mlp": 8 * hidden * hidden, "block": 13 * hidden * hidden}[spec.kind]
    adapter = 0 if spec.rerank is None else hidden * hidden
    parameters = (
        len(spec.layers) * (head + adapter + (spec.rank or 0) * hidden) + (spec.rank or 0) * shape.vocab_size
    )
    model = 6 * shape.vocab_size * hidden  # the LM head, in two precisions
    return TRAINING_BYTES_PER_PARAMETER * parameters + model + ACTIVATION_BYTES


def check_disk(work: Path, needed: int, folder: Path) -> None:
    """Raises `OSError` if missing hidden states would not fit on the disk."""
    work.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(work).free
    if not (folder / "index.json").exists() and needed > free:
        raise OSError(
            f"Hidden states would take {needed >> 20} MiB in {work}, where {free >> 20} MiB are free: "
            "name another --work folder, or give fewer prompts."
        )
