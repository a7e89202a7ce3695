"""Combines and checks the flags of early exit. Pure.

Whether exits fit a model is found out by the shard, which has it.
"""

from itertools import pairwise

import msgspec

from router.settings.layerskip import exit_layers_of
from router.settings.options import ConfigError
from shard.messages import DrafterKind, Mode

DRAFTING_MODES = (Mode.SPECULATIVE, Mode.PER_ROW, Mode.CAPPED)
REPLAYING_MODES = (Mode.SYNCHRONIZED, Mode.PER_ROW, Mode.CAPPED)  # which use each token's exit layer


def drafters_of(named: tuple[DrafterKind, ...], mode: Mode, has_exits: bool) -> tuple[DrafterKind, ...]:
    """The drafters named, as far as a mode has them; by default in `speculative` text, and exits if any."""
    if mode is not Mode.SPECULATIVE:
        return tuple(kind for kind in named if kind is DrafterKind.TEXT and mode in DRAFTING_MODES)
    return named or ((DrafterKind.TEXT, DrafterKind.EXIT) if has_exits else (DrafterKind.TEXT,))


class ExitChoice(msgspec.Struct, frozen=True, kw_only=True):
    """Early-exit settings of a model. What is named was given by the user; the rest is in effect."""

    model_id: str
    mode: Mode
    named_layers: tuple[int, ...]
    folder: str | None
    replay: str | None
    num_layers: int | None
    named_drafters: tuple[DrafterKind, ...] = ()
    drafter_head: str | None = None

    @property
    def drafters(self) -> tuple[DrafterKind, ...]:
        """The drafters in effect."""
        return drafters_of(self.named_drafters, self.mode, self._has_exits)

    @property
    def _has_exits(self) -> bool:
        return bool(self.layers) or self.folder is not None

    @property
    def layers(self) -> tuple[int, ...]:
        """The layers named, else in modes with several exits those that the checkpoint was trained for."""
        if self.mode in (Mode.FULL, Mode.CAPPED) or self.folder is not None:
            return self.named_layers
        return self.named_layers or exit_layers_of(self.model_id)

    @property
    def depth(self) -> int | None:
        """Layers to load; None: all."""
        if self.mode == Mode.CAPPED and self.num_layers is None and self.named_layers:
            return self.named_layers[-1]
        return self.num_layers

    def check(self) -> None:
        """Raises `ConfigError` when two flags contradict each other or one lacks another."""
        self._check_layers()
        self._check_mode()
        self._check_drafters()
        if self.replay is not None and self.mode not in REPLAYING_MODES:
            raise ConfigError(
                "replay_exits",
                f"replay_exits needs exit_mode {', '.join(REPLAYING_MODES[:-1])} or {REPLAYING_MODES[-1]}, "
                f"not {self.mode}: the others do not go by where each token may leave.",
            )

    def _check_layers(self) -> None:
        if self.named_layers and self.folder is not None:
            raise ConfigError(
                "exit_layers", "exit_layers cannot be given with exits: that folder names its own."
            )
        if any(later <= earlier for earlier, later in pairwise(self.named_layers)):
            layers = ",".join(map(str, self.named_layers))
            raise ConfigError("exit_layers", f"exit_layers must rise, not {layers}.")

    def _check_mode(self) -> None:
        if self.mode == Mode.FULL and (self.named_layers or self.folder is not None):
            field = "exit_layers" if self.named_layers else "exits"
            raise ConfigError(
                field,
                f"{field} has no use in exit_mode full, in which nothing is left early: "
                "choose synchronized, per_row, capped or speculative.",
            )
        if self.mode == Mode.CAPPED:
            self._check_cap()
        elif self.mode not in (Mode.FULL, Mode.SPECULATIVE) and not self._has_exits:
            raise ConfigError(
                "exit_mode",
                f"exit_mode {self.mode} needs exit_layers or exits: where the model may be left.",
            )

    def _check_drafters(self) -> None:
        named = self.named_drafters
        if named and self.mode not in DRAFTING_MODES:
            raise ConfigError(
                "drafters",
                f"drafters has no use in exit_mode {self.mode}: choose speculative, per_row or capped.",
            )
        if len(set(named)) < len(named):
            raise ConfigError("drafters", f"drafters must differ, not {','.join(named)}.")
        if DrafterKind.HEAD in named and (self.mode is not Mode.SPECULATIVE or DrafterKind.EXIT in named):
            sentence = "drafters can be head in exit_mode speculative alone, and not beside exit: "
            raise ConfigError("drafters", sentence + "it reads the states of whole passes.")
        if self.drafter_head is not None and DrafterKind.HEAD not in named:
            raise ConfigError("drafter_head", "drafter_head has no use without the drafter head.")
        if DrafterKind.EXIT in named:
            self._check_exit_drafts()
        elif named and self.mode is Mode.SPECULATIVE and (self.named_layers or self.folder is not None):
            field = "exit_layers" if self.named_layers else "exits"
            raise ConfigError(field, f"{field} has no use in exit_mode speculative without the drafter exit.")

    def _check_exit_drafts(self) -> None:
        if self.mode is not Mode.SPECULATIVE:
            sentence = f"drafters cannot be exit in exit_mode {self.mode}: tokens leave there."
            raise ConfigError("drafters", sentence)
        if not self._has_exits:
            raise ConfigError("drafters", "drafters cannot be exit without exit_layers or exits.")
        if self.named_drafters[-1] is not DrafterKind.EXIT:
            raise ConfigError("drafters", "drafters must have exit last: it costs most.")

    def _check_cap(self) -> None:
        if self.depth is None:
            raise ConfigError(
                "exit_mode", "exit_mode capped needs num_layers or exit_layers: how many layers to load."
            )
        if self.named_layers and self.depth not in self.named_layers:
            layers = ",".join(map(str, self.named_layers))
            raise ConfigError(
                "num_layers",
                f"num_layers must be one of exit_layers ({layers}) in exit_mode capped, not {self.depth}.",
            )
