"""The clock of a shard's reports. Passing time blocks the thread."""

import time


class Clock:
    """Wall time."""

    def now_ms(self) -> float:
        return time.perf_counter() * 1000

    def pass_ms(self, ms: float) -> None:
        """Sleep for `ms`."""
        time.sleep(ms / 1000)


class VirtualClock(Clock):
    """A clock that advances only by `pass_ms`, for simulated shards that do not wait."""

    def __init__(self) -> None:
        self._now_ms = 0.0

    def now_ms(self) -> float:
        return self._now_ms

    def pass_ms(self, ms: float) -> None:
        self._now_ms += ms
