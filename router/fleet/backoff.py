"""Exponential backoff between restarts."""

_FIRST_S = 0.2
_MAX_S = 30.0
_LONG_LIFE_S = 60.0  # after a life of this length the next restart does not wait


class Backoff:
    """No pause before the first restart, then pauses that double while lives stay short."""

    def __init__(self) -> None:
        self._next_s = 0.0

    def pause_s(self, lived_s: float) -> float:
        """The pause to make after a life of `lived_s` seconds."""
        pause_s = 0.0 if lived_s >= _LONG_LIFE_S else self._next_s
        self._next_s = min(_MAX_S, max(_FIRST_S, 2 * pause_s))
        return pause_s
