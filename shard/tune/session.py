"""Runs a whole tuning: from a configuration to an exit folder."""

import os
from collections.abc import Callable

import msgspec
import torch

from shard.messages import Mode, ShardConfig
from shard.models.shape import read_config, shape_of
from shard.precision import precision_of
from shard.quality.weight_format import NONE
from shard.runner import ModelRunner
from shard.tune.costs import Costs, measure_costs
from shard.tune.layers import read_backbone
from shard.tune.loss import Measured
from shard.tune.pipeline import Result, Tuning
from shard.tune.preflight import check
from shard.tune.progress import Progress
from shard.tune.sources import make_sources
from shard.tune.tune_config import Ask


class Made(msgspec.Struct, frozen=True):
    """A finished tuning, with its exit folder in place."""

    ask: Ask
    result: Result


def tune_exits(ask: Ask, progress: Progress) -> Made:
    """Make the exit folder. Raises `ValueError`, `OSError` or `MemoryError` with one sentence."""
    shape = shape_of(read_config(ask.model))
    check(ask, shape)
    torch.set_num_threads(ask.machine.num_threads or os.cpu_count() or 1)
    sources = make_sources(ask, shape, progress)
    device = torch.device(ask.machine.device)
    back = read_backbone(ask.model, shape.max_positions, device)
    to = torch.empty(0, dtype=precision_of(ask.machine.device, ask.machine.dtype).compute, device=device)
    result = Tuning(back, sources, ask.wanted, ask.out, to).run(_teller(progress))
    (ask.out / "tuning.json").write_bytes(msgspec.json.format(msgspec.json.encode(result), indent=1) + b"\n")
    return Made(ask, result)


def measure(ask: Ask) -> Costs:
    """Costs of layers and heads on this machine, measured in the engine."""
    config = ShardConfig(
        model=str(ask.model),
        device=ask.machine.device,
        dtype=ask.machine.dtype,
        quantize=NONE,
        kv_cache_bytes=1 << 28,
        num_threads=ask.machine.num_threads,
        exit_mode=Mode.PER_ROW,
        exits=str(ask.out),
    )
    return measure_costs(ModelRunner(config))


def _teller(progress: Progress) -> Callable[[str, int, int, dict[int, Measured]], None]:
    def tell(stage: str, step: int, total: int, measured: dict[int, Measured]) -> None:
        parts = (
            f"exit {layer}: loss {float(found.loss):.2f}, {float(found.agreement):.0%} equal, "
            f"{float(found.agreement_of_surest):.0%} of the surest half"
            for layer, found in measured.items()
        )
        progress.tell(f"training {stage}", step, total, " · ".join(parts))

    return tell
