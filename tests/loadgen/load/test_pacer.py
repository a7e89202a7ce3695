import asyncio
import time
from collections.abc import Iterator
from time import monotonic

from loadgen.load.pacer import LagMeter, Pacer


async def test_ticks_come_in_order_and_never_early() -> None:
    ticks: list[tuple[float, float]] = []
    over = asyncio.Event()
    began = monotonic()
    due = [began + 0.02 * step for step in range(10)]
    pacer = Pacer(due, lambda at: ticks.append((at, monotonic())), over.set)
    pacer.start()
    await asyncio.wait_for(over.wait(), 20)
    pacer.stop()
    assert [at for at, _ in ticks] == due
    assert all(now >= at for at, now in ticks)


async def test_late_times_are_called_at_once() -> None:
    over = asyncio.Event()
    ticks: list[float] = []
    pacer = Pacer([monotonic() - 5, monotonic() - 4], ticks.append, over.set)
    pacer.start()
    await asyncio.wait_for(over.wait(), 20)
    pacer.stop()
    assert len(ticks) == 2


async def test_times_that_fail_end_the_wait_and_are_told_of() -> None:
    def fail() -> Iterator[float]:
        yield monotonic()
        raise ValueError("no such file")

    over = asyncio.Event()
    pacer = Pacer(fail(), lambda at: None, over.set)
    pacer.start()
    await asyncio.wait_for(over.wait(), 20)
    pacer.stop()
    assert str(pacer.error) == "no such file"


async def test_a_stopped_pacer_ticks_no_more() -> None:
    ticks: list[float] = []
    pacer = Pacer([monotonic() + 3600], ticks.append)
    pacer.start()
    pacer.stop()
    await asyncio.sleep(0.01)
    assert ticks == []


async def test_a_blocked_loop_shows_as_lag() -> None:
    meter = LagMeter()
    meter.start()
    await asyncio.sleep(0.1)
    time.sleep(0.2)  # noqa: ASYNC251
    await asyncio.sleep(0.1)
    meter.stop()
    assert max(meter.lags) >= 0.15
    assert min(meter.lags) >= 0
