"""Who takes what: load spreads evenly, the least busy goes first, nobody waits for a shard that cannot."""

import asyncio
from random import Random

from hypothesis import given
from hypothesis import strategies as st

from router.generation import Identity, Need
from router.ledger import Ledger
from router.pool import Pool, _level
from router.scheduler import Limits, Scheduler
from tests.router.fakes import make_generation, make_request

LIMITS = Limits(max_batch_size=8, max_batch_tokens=512, block_size=16)


class PlayedMember:
    def __init__(self, shard: int, pool: Pool):
        self.scheduler: Scheduler | None = Scheduler(shard, LIMITS, make_generation(), pool.queue)
        self.is_draining = False
        self.is_responsive = True
        self.is_hopeless = False
        self.num_wakes = 0

    def has_home(self, identity: Identity) -> bool:
        return self.scheduler is not None and self.scheduler.has_home(identity)

    def can_serve(self, need: Need) -> bool:
        return self.scheduler is not None and self.scheduler.can_serve(need)

    def wake(self) -> None:
        self.num_wakes += 1

    @property
    def num_running(self) -> int:
        return self.scheduler.num_running


def pool_of(num_members: int) -> Pool:
    pool = Pool(Ledger())
    pool.members = [PlayedMember(shard, pool) for shard in range(num_members)]
    return pool


def arrive(pool: Pool, count: int, start: int = 0) -> None:
    for id in range(start, start + count):
        pool.add(make_request(id))


def schedule(pool: Pool, member: PlayedMember) -> None:
    member.scheduler.schedule(0.0, pool.share(member))


async def test_a_burst_spreads_evenly_whoever_schedules_first() -> None:
    pool = pool_of(4)
    arrive(pool, 16)
    for member in pool.members:
        schedule(pool, member)
    assert [member.num_running for member in pool.members] == [4, 4, 4, 4]


async def test_the_least_busy_shard_is_woken_and_the_others_leave_the_request_to_it() -> None:
    pool = pool_of(3)
    arrive(pool, 5)
    for member in pool.members:
        schedule(pool, member)
    assert [member.num_running for member in pool.members] == [2, 2, 1]
    wakes = [member.num_wakes for member in pool.members]
    arrive(pool, 1, start=10)
    assert [member.num_wakes for member in pool.members] == [wakes[0], wakes[1], wakes[2] + 1]
    for member in pool.members:
        schedule(pool, member)
    assert [member.num_running for member in pool.members] == [2, 2, 2]


async def test_a_shard_without_a_free_slot_is_not_woken_and_still_left_its_share() -> None:
    pool = pool_of(2)
    busy, other = pool.members
    arrive(pool, 1)
    schedule(pool, busy)
    schedule(pool, busy)
    assert not busy.scheduler.has_slot
    other.is_responsive = False
    arrive(pool, 1, start=5)
    assert busy.num_wakes == 1
    assert len(pool.queue) == 1


async def test_nobody_waits_for_a_shard_that_is_gone_late_or_draining() -> None:
    pool = pool_of(4)
    gone, late, draining, serving = pool.members
    gone.scheduler, late.is_responsive, draining.is_draining = None, False, True
    arrive(pool, 8)
    schedule(pool, draining)
    schedule(pool, serving)
    assert [late.num_running, draining.num_running, serving.num_running] == [0, 0, 8]


@given(st.lists(st.integers(0, 1000), min_size=1), st.integers(0, 10_000))
def test_the_level_holds_just_what_was_poured(loads: list[int], amount: int) -> None:
    level = _level(loads, amount)
    assert level >= min(loads)
    assert abs(sum(max(0.0, level - load) for load in loads) - amount) < 1e-6 * (1 + amount)


@given(st.lists(st.integers(1, 12), min_size=1, max_size=6), st.randoms())
def test_what_waits_is_always_taken_while_somebody_has_room(bursts: list[int], random: Random) -> None:
    async def play() -> None:
        pool = pool_of(3)
        for number, burst in enumerate(bursts):
            arrive(pool, burst, start=100 * number)
            for member in random.sample(pool.members, 3) * 3:
                schedule(pool, member)
            is_full = all(member.num_running == 8 for member in pool.members)
            slots = any(member.scheduler.has_slot for member in pool.members)
            assert len(pool.queue) == 0 or is_full or not slots

    asyncio.run(play())
