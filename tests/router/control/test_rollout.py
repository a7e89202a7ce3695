"""One change of several shards: what fails is found out early, and then nothing is left of it."""

from typing import Any

import pytest

from router.control.rollout import roll_out
from router.fleet.swap import SwapError, SwapOptions
from tests.router.fakes import make_target

OLD, CHAT, CODE = (make_target(name) for name in ("old", "chat", "code"))


class FakeDispatcher:
    """Shards that change at once; each target in `failing` cannot be loaded by the shard named."""

    def __init__(self, num_shards: int, failing: dict[int, str]):
        self.serving = [OLD] * num_shards
        self.before = [None] * num_shards
        self.failing = failing
        self.asked: list[int] = []

    async def swap(self, target, options, shard):
        self.asked.append(shard)
        if self.failing.get(shard) == target.name:
            raise SwapError("There is no such file.")
        self.before[shard], self.serving[shard] = self.serving[shard], target
        return [shard]

    async def undo(self, shards, options, why):
        for shard in shards:
            self.serving[shard] = self.before[shard]
        raise why


async def test_each_shard_gets_its_own():
    shards = FakeDispatcher(5, {})
    wanted = {0: CHAT, 1: CHAT, 3: CODE, 4: CODE}
    results: list[Any] = await roll_out(shards, wanted, SwapOptions())
    assert sorted(results) == [0, 1, 3, 4]
    assert shards.serving == [CHAT, CHAT, OLD, CODE, CODE]
    assert set(shards.asked[:2]) == {0, 3}  # one of each kind goes first


@pytest.mark.parametrize("shard", range(6))
async def test_of_two_kinds_all_are_changed_or_none(shard):
    wanted = {0: CHAT, 1: CHAT, 2: CHAT, 3: CODE, 4: CODE, 5: CODE}
    shards = FakeDispatcher(6, {shard: wanted[shard].name})
    with pytest.raises(SwapError, match="no such file"):
        await roll_out(shards, wanted, SwapOptions())
    assert shards.serving == [OLD] * 6
