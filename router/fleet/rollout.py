"""Changes several shards, all or none: first one shard for each target, then the others in two halves.

A failure shows on the first one, and while one half changes the other serves.
"""

import asyncio
import logging
from collections.abc import Mapping, Sequence
from typing import NoReturn

from router.catalog.served_model import Target
from router.fleet.engine import Engine
from router.fleet.swap import NotUndone, SwapOptions, SwapResult

log = logging.getLogger(__name__)


async def roll_out(
    engines: Sequence[Engine], targets: Mapping[int, Target], options: SwapOptions
) -> list[SwapResult]:
    """Change shards, by number, to their targets: all or none. Raises the first failure after reverting.

    Raises `NotUndone` instead when some cannot be reverted.
    """
    done: dict[int, SwapResult] = {}
    for wave in _waves(targets):
        swaps = (engines[shard].swap(targets[shard], options) for shard in wave)
        answers = dict(zip(wave, await asyncio.gather(*swaps, return_exceptions=True), strict=True))
        done |= {shard: made for shard, made in answers.items() if not isinstance(made, BaseException)}
        error = next((made for made in answers.values() if isinstance(made, BaseException)), None)
        if error is not None:
            await _undo([engines[shard] for shard in done], options, error)
    return list(done.values())


async def _undo(engines: Sequence[Engine], options: SwapOptions, why: BaseException) -> NoReturn:
    """Revert shards to what they served before a failed change, then raise its error."""
    ends = await asyncio.gather(*(engine.swap_back(options) for engine in engines), return_exceptions=True)
    stuck = [
        f"Shard {engine.shard} goes on with {engine.target.name}: {end}"
        for engine, end in zip(engines, ends, strict=True)
        if end is not None
    ]
    if not stuck:
        raise why
    log.error("A change could not be undone. %s", " ".join(stuck))
    raise NotUndone(" ".join([str(why), *stuck])) from why


def _waves(targets: Mapping[int, Target]) -> list[Sequence[int]]:
    """The waves of a rollout. Both halves have about equally many shards of each target."""
    by_target: dict[tuple[str, int | None], list[int]] = {}
    for shard, target in targets.items():
        by_target.setdefault((target.name, target.config.num_layers), []).append(shard)
    first = [shards[0] for shards in by_target.values()]
    others = [shards[1:] for shards in by_target.values()]
    half = [shard for shards in others for shard in shards[::2]]
    rest = [shard for shards in others for shard in shards[1::2]]
    return [wave for wave in (first, half, rest) if wave]
