"""One change of several shards: what fails is found out early, and then nothing is left of it."""

import asyncio
from typing import Any

import pytest

from router.fleet.rollout import roll_out
from router.fleet.swap import SwapError, SwapOptions
from tests.router.fakes import make_target

OLD, CHAT, CODE = (make_target(name) for name in ("old", "chat", "code"))


class FakeFleet:
    """Shards that change within a moment; those in `failing` cannot load the target named."""

    def __init__(self, num_shards: int, failing: dict[int, str]):
        self.failing = failing
        self.changing: set[int] = set()
        self.waves: list[set[int]] = []
        self.engines: Any = [FakeEngine(shard, self) for shard in range(num_shards)]

    @property
    def serving(self):
        return [engine.target for engine in self.engines]


class FakeEngine:
    def __init__(self, shard: int, fleet: FakeFleet):
        self.shard = shard
        self.target = self.before = OLD
        self.fleet = fleet

    async def swap(self, target, options):
        if not self.fleet.changing:
            self.fleet.waves.append(self.fleet.changing)
        self.fleet.changing.add(self.shard)
        await asyncio.sleep(0)
        self.fleet.changing = set()
        if self.fleet.failing.get(self.shard) == target.name:
            raise SwapError("There is no such file.")
        self.before, self.target = self.target, target
        return self.shard

    async def swap_back(self, options):
        self.target = self.before


async def test_each_shard_gets_its_own():
    fleet = FakeFleet(5, {})
    wanted = {0: CHAT, 1: CHAT, 3: CODE, 4: CODE}
    results: list[Any] = await roll_out(fleet.engines, wanted, SwapOptions())
    assert sorted(results) == [0, 1, 3, 4]
    assert fleet.serving == [CHAT, CHAT, OLD, CODE, CODE]
    assert fleet.waves[0] == {0, 3}  # one of each kind goes first


async def test_one_goes_first_and_while_a_half_of_the_others_changes_the_other_half_serves():
    fleet = FakeFleet(7, {})
    await roll_out(fleet.engines, dict.fromkeys(range(7), CHAT), SwapOptions())
    assert fleet.waves == [{0}, {1, 3, 5}, {2, 4, 6}]


@pytest.mark.parametrize("shard", range(6))
async def test_of_two_kinds_all_are_changed_or_none(shard):
    wanted = {0: CHAT, 1: CHAT, 2: CHAT, 3: CODE, 4: CODE, 5: CODE}
    fleet = FakeFleet(6, {shard: wanted[shard].name})
    with pytest.raises(SwapError, match="no such file"):
        await roll_out(fleet.engines, wanted, SwapOptions())
    assert fleet.serving == [OLD] * 6
