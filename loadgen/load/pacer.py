"""Timing outside the event loop: starts things on time, and measures the loop's lag.

An event loop's own timers are accurate to a millisecond at best, and a late loop cannot notice it. A thread
that only sleeps wakes within some ten microseconds and notifies the loop. The time until the loop reacts is
its lag, the error bound of every timestamp of this client.
"""

import asyncio
import threading
from array import array
from collections.abc import Callable, Iterable, Iterator
from time import monotonic

LAG_PERIOD_S = 0.01
_JOIN_S = 10.0  # to finish drawing; then the thread is abandoned, and ends with the process


class Pacer:
    """Calls `tick(due)` on the loop at each of the given rising times, at once if already late.

    Calls `at_end` on the loop after the last one, or when the iterator of times fails with `error`. Must be
    stopped before the loop closes.
    """

    def __init__(
        self, times: Iterable[float], tick: Callable[[float], None], at_end: Callable[[], None] = lambda: None
    ):
        self.error: Exception | None = None
        self._times = times
        self._tick = tick
        self._at_end = at_end
        self._stopped = threading.Event()
        self._loop = asyncio.get_running_loop()
        self._thread = threading.Thread(target=self._run, name="pacer", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stopped.set()
        self._thread.join(_JOIN_S)

    def _run(self) -> None:
        try:
            for due in self._times:
                wait = due - monotonic()
                if (wait > 0 and self._stopped.wait(wait)) or self._stopped.is_set():
                    return
                self._loop.call_soon_threadsafe(self._tick, due)
        except Exception as error:
            self.error = error
        self._loop.call_soon_threadsafe(self._at_end)


class LagMeter:
    """Samples how late the event loop is, a hundred times a second, in seconds."""

    def __init__(self) -> None:
        self.lags = array("d")
        self._pacer = Pacer(self._beats(), self._note)

    def start(self) -> None:
        self._pacer.start()

    def stop(self) -> None:
        self._pacer.stop()

    def _note(self, due: float) -> None:
        self.lags.append(monotonic() - due)

    def _beats(self) -> Iterator[float]:
        due = monotonic()
        while True:
            due += LAG_PERIOD_S
            yield due
