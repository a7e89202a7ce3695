"""One change on several shards: one first, the others in two halves; all of them, or in the end none.

What fails is found out on one, and while a half changes, the other serves.
"""

import asyncio
import contextlib
from collections.abc import Sequence

from router.dispatcher import Dispatcher
from router.generation import Target
from router.swap import Done, SwapError, Wish


async def roll_out(dispatcher: Dispatcher, target: Target, wish: Wish, shards: Sequence[int]) -> list[Done]:
    """Change some shards. Raises `SwapError` when one of them fails: those changed are changed back."""
    done: dict[int, list[Done]] = {}
    for wave in _waves(shards):
        swaps = (dispatcher.swap(target, wish, shard) for shard in wave)
        answers = dict(zip(wave, await asyncio.gather(*swaps, return_exceptions=True), strict=True))
        done |= {shard: made for shard, made in answers.items() if not isinstance(made, BaseException)}
        error = next((made for made in answers.values() if isinstance(made, BaseException)), None)
        if error is not None:
            await asyncio.gather(*(_take_back(dispatcher, wish, shard) for shard in done))
            raise error
    return [one for made in done.values() for one in made]


def _waves(shards: Sequence[int]) -> list[Sequence[int]]:
    half = 1 + len(shards) // 2
    return [wave for wave in (shards[:1], shards[1:half], shards[half:]) if wave]


async def _take_back(dispatcher: Dispatcher, wish: Wish, shard: int) -> None:
    before = dispatcher.targets(shard)[0][1]
    if before is not None:
        with contextlib.suppress(SwapError):
            await dispatcher.swap(before, wish, shard)
