"""Settings of early exit on a shard: mode, criterion, and KV fill of layers not run."""

import msgspec

from shard.messages import Criterion, Fill, Mode, ShardConfig


class Settings(msgspec.Struct, frozen=True):
    """Settings of early exit."""

    mode: Mode
    criterion: Criterion = Criterion.SOFTMAX
    fill: Fill = Fill.RECOMPUTE  # in `synchronized` and `per_row`
    threshold: float = 0.9  # where an exit has none of its own
    falls_back: bool = True  # run at full depth where leaving early does not pay
    defers: bool = True  # let rows wait at the first exit


def settings_of(config: ShardConfig) -> Settings:
    """The early-exit settings of a shard's configuration."""
    mode, fill = Mode(config.exit_mode), Fill(config.kv_fill)
    return Settings(
        mode=mode,
        criterion=Criterion(config.exit_criterion),
        fill=fill if mode in (Mode.SYNCHRONIZED, Mode.PER_ROW) else Fill.RECOMPUTE,
        threshold=config.exit_threshold,
        falls_back=config.exit_fallback,
        defers=config.exit_deferral,
    )
