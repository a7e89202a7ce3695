"""One change of several shards: one of each kind first, the others in two halves; all, or in the end none.

What fails is found out on one, and while a half changes, the other serves.
"""

import asyncio
from collections.abc import Mapping, Sequence

from router.catalog.served_model import Target
from router.fleet.dispatcher import Dispatcher
from router.fleet.swap import SwapOptions, SwapResult


async def roll_out(
    dispatcher: Dispatcher, targets: Mapping[int, Target], options: SwapOptions
) -> list[SwapResult]:
    """Change some shards. Raises as `Dispatcher.undo` when one of them fails."""
    done: dict[int, list[SwapResult]] = {}
    for wave in _waves(targets):
        swaps = (dispatcher.swap(targets[shard], options, shard) for shard in wave)
        answers = dict(zip(wave, await asyncio.gather(*swaps, return_exceptions=True), strict=True))
        done |= {shard: made for shard, made in answers.items() if not isinstance(made, BaseException)}
        error = next((made for made in answers.values() if isinstance(made, BaseException)), None)
        if error is not None:
            await dispatcher.undo(done, options, error)
    return [result for made in done.values() for result in made]


def _waves(targets: Mapping[int, Target]) -> list[Sequence[int]]:
    """Halves have as many of each target, as far as that goes."""
    by_target: dict[tuple[str, int | None], list[int]] = {}
    for shard, target in targets.items():
        by_target.setdefault((target.name, target.config.num_layers), []).append(shard)
    first = [shards[0] for shards in by_target.values()]
    others = [shards[1:] for shards in by_target.values()]
    half = [shard for shards in others for shard in shards[::2]]
    rest = [shard for shards in others for shard in shards[1::2]]
    return [wave for wave in (first, half, rest) if wave]
