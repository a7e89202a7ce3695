"""An answer that costs something is made once for all who ask at a time."""

import asyncio

from router.api.respond import SharedAnswer


async def test_a_shared_answer_is_made_once_within_its_time_and_then_anew() -> None:
    num_made = 0

    async def make() -> int:
        nonlocal num_made
        num_made += 1
        await asyncio.sleep(0)
        return num_made

    shared = SharedAnswer(make, 3600.0)
    answers = await asyncio.gather(*(shared.response() for _ in range(5)))
    assert [answer.body for answer in answers] == [b"1"] * 5
    unshared = SharedAnswer(make, 0.0)
    assert [(await unshared.response()).body for _ in range(2)] == [b"2", b"3"]
