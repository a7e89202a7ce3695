"""One change on several shards: some at a time, so that the others serve; all of them, or in the end none."""

import asyncio
import contextlib
from collections.abc import Sequence

from router.dispatcher import Dispatcher
from router.generation import Target
from router.swap import Done, SwapError, Wish

_WAVES = 8  # a change goes over all shards in so many waves, or shard by shard


async def roll_out(dispatcher: Dispatcher, target: Target, wish: Wish, shards: Sequence[int]) -> list[Done]:
    """Change some shards. Raises `SwapError` when one of them fails: those changed are changed back."""
    size = -(-len(shards) // _WAVES)
    done: list[Done] = []
    for first in range(0, len(shards), max(1, size)):
        wave = shards[first : first + size]
        answers = await asyncio.gather(
            *(dispatcher.swap(target, wish, shard) for shard in wave), return_exceptions=True
        )
        errors = [answer for answer in answers if isinstance(answer, BaseException)]
        if errors:
            changed = [
                s for s, answer in zip(wave, answers, strict=True) if not isinstance(answer, BaseException)
            ]
            await _take_back(dispatcher, wish, [*shards[:first], *changed])
            raise errors[0]
        done += [one for answer in answers if not isinstance(answer, BaseException) for one in answer]
    return done


async def _take_back(dispatcher: Dispatcher, wish: Wish, shards: Sequence[int]) -> None:
    for shard in shards:
        before = dispatcher.targets(shard)[0][1]
        if before is not None:
            with contextlib.suppress(SwapError):
                await dispatcher.swap(before, wish, shard)
