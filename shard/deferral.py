"""When rows that stay at the first exit go deep: at once, or together with others that will stay there too.

A deep pass costs nearly the same for few rows as for many, so waiting until some have gathered makes each
cheaper; meanwhile they do not fill the shallow passes (DREX, 2512.15705). Pure.
"""

import math

MAX_WAIT_STEPS = 8
SMOOTHING = 0.1


class Deferral:
    """Measures passes and the share that stays, and says how many rows are worth a deep pass."""

    def __init__(self) -> None:
        self._shallow_ms: float | None = None
        self._deep_ms: float | None = None
        self._stay_share: float | None = None

    def note_shallow(self, ms: float, num_voters: int, num_staying: int) -> None:
        """A pass up to the first exit, and who stayed there."""
        self._shallow_ms = _smoothed(self._shallow_ms, ms)
        self._stay_share = _smoothed(self._stay_share, num_staying / num_voters)

    def note_deep(self, ms: float) -> None:
        """The passes beyond the first exit of one step."""
        self._deep_ms = _smoothed(self._deep_ms, ms)

    def wanted(self, num_rows: int) -> float:
        """Rows to gather for a deep pass, of `num_rows` in flight; 0 while nothing is known.

        With K gathered for each, shallow passes hold about B - K / 2 rows, so that a token costs
        shallow / (B - K / 2) + stay * deep / K: least where K / (B - K / 2) = sqrt(2 stay deep / shallow).
        """
        if not self._shallow_ms or self._deep_ms is None or self._stay_share is None:
            return 0.0
        ratio = math.sqrt(2 * self._stay_share * self._deep_ms / self._shallow_ms)
        return num_rows * ratio / (1 + ratio / 2)


def _smoothed(before: float | None, value: float) -> float:
    return value if before is None else before + SMOOTHING * (value - before)
