"""Decides which exits to ask, when asking costs a run of the LM head. Pure.

A head run in vain costs as much as some layers. An exit is asked while its gain exceeds the cost of asking:
the share of rows that leave there, times the cost of the layers behind it and of the LM head. Else it is
asked only now and then.
"""

import msgspec

SMOOTHING = 0.05
LOOK_AGAIN_STEPS = 64  # steps between two trials of an exit that does not pay


class Exit(msgspec.Struct):
    """Statistics of one exit, smoothed over steps."""

    pass_share: float = 1.0  # share of rows asked that pass; optimistic at first
    ask_ms: float = 0.0
    skipped: int = 0  # steps since it was last asked


class ExitSkipper:
    """Decides for each exit and step whether to ask; `enabled=False` asks every time."""

    def __init__(self, num_exits: int, enabled: bool):
        self._exits = [Exit() for _ in range(num_exits)]
        self._segment_ms = [0.0] * (num_exits + 1)
        self._head_ms = 0.0
        self._enabled = enabled

    def asks(self, exit_index: int) -> bool:
        """Whether to ask this exit now."""
        if not self._enabled or self._pays(exit_index):
            return True
        known = self._exits[exit_index]
        known.skipped = (known.skipped + 1) % LOOK_AGAIN_STEPS
        return known.skipped == 0

    def note_asked(self, exit_index: int, num_rows: int, num_passed: int, ms: float) -> None:
        """Note rows asked, rows that passed, and the time that asking took."""
        known = self._exits[exit_index]
        known.pass_share += SMOOTHING * (num_passed / num_rows - known.pass_share)
        known.ask_ms = _smoothed(known.ask_ms, ms)

    def note_segment(self, segment: int, ms: float) -> None:
        """Note the time of a segment."""
        self._segment_ms[segment] = _smoothed(self._segment_ms[segment], ms)

    def note_head(self, ms: float) -> None:
        """Note the head's time for rows that it draws for without having been asked."""
        self._head_ms = _smoothed(self._head_ms, ms)

    def _pays(self, exit_index: int) -> bool:
        known, behind_ms = self._exits[exit_index], sum(self._segment_ms[exit_index + 1 :])
        return behind_ms == 0 or known.pass_share * (behind_ms + self._head_ms) >= known.ask_ms


def _smoothed(before: float, value: float) -> float:
    return value if before == 0 else before + SMOOTHING * (value - before)
