"""Tasks fail heard, and their owners wait for their ends neither too long nor deaf to their own."""

import asyncio

import pytest

from telemetry import tasks


async def test_what_fails_is_logged_at_once(caplog: pytest.LogCaptureFixture) -> None:
    async def fail() -> None:
        raise OSError("no room")

    task = tasks.begin(fail(), "The writer")
    await tasks.ended([task], 5)
    await asyncio.sleep(0)
    assert "The writer failed." in caplog.text
    assert "no room" in caplog.text


async def test_an_owner_that_is_cancelled_while_it_waits_for_an_end_is_cancelled() -> None:
    is_ending = asyncio.Event()

    async def end_slowly() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            is_ending.set()
            await asyncio.sleep(0.01)

    async def own() -> str:
        task = asyncio.create_task(end_slowly())
        await asyncio.sleep(0)
        await tasks.cancel(task)
        return "went on"

    owner = asyncio.create_task(own())
    await is_ending.wait()
    owner.cancel()
    with pytest.raises(asyncio.CancelledError):
        await owner


async def test_a_task_that_does_not_end_is_left_behind_and_named(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tasks, "END_TIMEOUT_S", 0.05)
    may_end = asyncio.Event()

    async def refuse() -> None:
        while not may_end.is_set():
            try:
                await may_end.wait()
            except asyncio.CancelledError:
                continue

    task = asyncio.create_task(refuse(), name="The stubborn one")
    await asyncio.sleep(0)
    await tasks.cancel(task)
    assert "The stubborn one has not ended" in caplog.text
    may_end.set()
    assert await tasks.ended([task], 5)
