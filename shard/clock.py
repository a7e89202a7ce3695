"""The time that a shard's reports are in. Knows no task to wake: what passes is slept through."""

import time


class Clock:
    """Wall time."""

    def now_ms(self) -> float:
        return time.perf_counter() * 1000

    def pass_ms(self, ms: float) -> None:
        """Let so much time go by."""
        time.sleep(ms / 1000)


class VirtualClock(Clock):
    """Time that passes only where somebody lets it: a simulated shard without waiting."""

    def __init__(self) -> None:
        self._now_ms = 0.0

    def now_ms(self) -> float:
        return self._now_ms

    def pass_ms(self, ms: float) -> None:
        self._now_ms += ms
