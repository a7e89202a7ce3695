"""Lanes for texts to be encoded: nobody waits behind a longer kind, and nobody waits without an end."""

import asyncio
import threading
from collections.abc import Iterator

import pytest

from router.api.encoding import EncodingPool
from router.scheduling.request import GenerationFailed

SHORT, LONG, VERY_LONG = 100, 10_000, 100_000
TIMEOUT_S = 20


@pytest.fixture
def pool() -> Iterator[EncodingPool]:
    pool = EncodingPool(max_characters=250_000)
    yield pool
    pool.close()


@pytest.fixture
def held() -> Iterator[threading.Event]:
    """Work waits for it."""
    event = threading.Event()
    yield event
    event.set()


async def test_work_is_done_on_a_thread_and_its_error_is_told(pool: EncodingPool) -> None:
    assert await pool.run(SHORT, threading.get_ident) != threading.get_ident()
    with pytest.raises(ZeroDivisionError):
        await pool.run(SHORT, lambda: 1 // 0)


async def test_short_texts_pass_long_ones(pool: EncodingPool, held: threading.Event) -> None:
    waiting = [
        asyncio.create_task(pool.run(size, held.wait)) for size in (VERY_LONG, VERY_LONG, LONG, LONG, LONG)
    ]
    async with asyncio.timeout(TIMEOUT_S):
        assert await pool.run(SHORT, lambda: "done") == "done"
    assert not any(task.done() for task in waiting)
    held.set()
    await asyncio.gather(*waiting)


async def test_a_full_lane_refuses_and_the_others_do_not(pool: EncodingPool, held: threading.Event) -> None:
    waiting = [asyncio.create_task(pool.run(VERY_LONG, held.wait)) for _ in range(2)]
    await asyncio.sleep(0)
    with pytest.raises(GenerationFailed) as refused:
        await pool.run(VERY_LONG, lambda: None)
    assert (refused.value.status, refused.value.kind) == (429, "overloaded")
    assert refused.value.retry_after_s is not None
    assert refused.value.retry_after_s >= 1
    await pool.run(LONG, lambda: None)
    held.set()
    await asyncio.gather(*waiting)
    await pool.run(VERY_LONG, lambda: None)


async def test_a_text_longer_than_the_lane_is_encoded_alone(
    pool: EncodingPool, held: threading.Event
) -> None:
    waiting = asyncio.create_task(pool.run(10 * VERY_LONG, held.wait))
    await asyncio.sleep(0)
    with pytest.raises(GenerationFailed):
        await pool.run(VERY_LONG, lambda: None)
    held.set()
    await waiting


async def test_who_leaves_before_its_turn_costs_nothing_and_who_leaves_later_keeps_its_place(
    pool: EncodingPool, held: threading.Event
) -> None:
    begun, done = threading.Event(), []

    def first() -> None:
        begun.set()
        held.wait(TIMEOUT_S)
        done.append("first")

    tasks = [asyncio.create_task(pool.run(VERY_LONG, first))]
    await asyncio.to_thread(begun.wait, TIMEOUT_S)
    tasks.append(asyncio.create_task(pool.run(VERY_LONG, lambda: done.append("second"))))
    await asyncio.sleep(0)
    for task in reversed(tasks):
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    with pytest.raises(GenerationFailed):
        await pool.run(2 * VERY_LONG, lambda: None)  # the first is still under way
    held.set()
    await pool.run(VERY_LONG, lambda: None)
    assert done == ["first"]
    await pool.run(2 * VERY_LONG, lambda: None)


async def test_room_is_kept_until_it_is_left(pool: EncodingPool) -> None:
    with pool.room(2 * VERY_LONG) as room:
        await room.run(lambda: None)
        with pytest.raises(GenerationFailed):
            await pool.run(VERY_LONG, lambda: None)
    await pool.run(VERY_LONG, lambda: None)
