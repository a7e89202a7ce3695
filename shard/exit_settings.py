"""How exits are used on a shard: the mode, the criterion, and what fills the layers not run."""

import enum

import msgspec

from shard.exits import Criterion
from shard.messages import ShardConfig


class Mode(enum.StrEnum):
    FULL = "full"
    SYNCHRONIZED = "synchronized"
    PER_ROW = "per_row"
    CAPPED = "capped"
    SPECULATIVE = "speculative"


class Fill(enum.StrEnum):
    PROJECT = "project"
    RECOMPUTE = "recompute"


class Settings(msgspec.Struct, frozen=True):
    """How exits are used."""

    mode: Mode
    criterion: Criterion = Criterion.SOFTMAX
    fill: Fill = Fill.RECOMPUTE
    threshold: float = 0.9  # where an exit has none of its own
    falls_back: bool = True  # run at full depth where leaving early does not pay
    defers: bool = True  # let rows wait at the first exit

    @property
    def fills(self) -> bool:
        """True when layers must be able to write their KV without being run."""
        return self.fill is Fill.PROJECT and self.mode in (Mode.SYNCHRONIZED, Mode.PER_ROW)


def settings_of(config: ShardConfig) -> Settings:
    """The part of a shard's configuration that is about exits. Raises `ValueError` for unknown names."""
    return Settings(
        mode=Mode(config.exit_mode),
        criterion=Criterion(config.exit_criterion),
        fill=Fill(config.kv_fill),
        threshold=config.exit_threshold,
        falls_back=config.exit_fallback,
        defers=config.exit_deferral,
    )
