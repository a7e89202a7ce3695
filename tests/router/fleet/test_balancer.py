"""Who takes what: load spreads evenly, the least busy goes first, nobody waits for a shard that cannot."""

import asyncio
from random import Random

from hypothesis import given
from hypothesis import strategies as st

from router.catalog.repository import Choice
from router.catalog.served_model import Generation, Identity, Need
from router.fleet.balancer import Pool, _level
from router.fleet.live_requests import Ledger
from router.scheduling.request import Request
from router.scheduling.scheduler import Limits, Scheduler
from router.text.prompt import Prompt
from tests.router.fakes import FakeTokenizer, make_generation, make_request, make_target

TEXTS = {"chat": "Tell me about the sea.", "code": "Write a python function."}
GENERATIONS = {name: make_generation(target=make_target(name)) for name in ("full", "chat", "code")}
FULL, CHAT, CODE = (one.choice for one in GENERATIONS.values())
BY_CLASS = {"chat": frozenset([FULL, CHAT]), "code": frozenset([FULL, CODE])}
LIMITS = Limits(max_batch_size=8, max_batch_tokens=512, block_size=16)


class PlayedMember:
    def __init__(self, shard: int, pool: Pool, generation: Generation):
        self.scheduler: Scheduler | None = Scheduler(shard, LIMITS, generation, pool.queue)
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
    pool.members = [PlayedMember(shard, pool, make_generation()) for shard in range(num_members)]
    return pool


def routed(*names: str, admitted: dict[str, frozenset[Choice]] = BY_CLASS) -> Pool:
    """A pool whose shards serve what is named."""
    pool = Pool(Ledger())
    for shard, name in enumerate(names):
        pool.members.append(PlayedMember(shard, pool, GENERATIONS[name]))
        pool.routes.serve(shard, GENERATIONS[name])
    pool.route(admitted)
    return pool


def arrive(pool: Pool, count: int, start: int = 0) -> None:
    for id in range(start, start + count):
        pool.add(make_request(id))


def ask(pool: Pool, kind: str, count: int = 1, start: int = 0) -> list[Request]:
    requests = [make_request(id, prompt=Prompt(TEXTS[kind])) for id in range(start, start + count)]
    for request in requests:
        pool.add(request)
    return requests


def schedule(pool: Pool, member: PlayedMember) -> None:
    member.scheduler.schedule(0.0, pool.share(member))


def shards_of(requests: list[Request]) -> set[int | None]:
    return {request.shard for request in requests}


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


async def test_prompts_go_to_shards_that_are_good_at_them() -> None:
    pool = routed("chat", "chat", "code")
    chats, codes = ask(pool, "chat", 6), ask(pool, "code", 4, start=100)
    for member in pool.members:
        schedule(pool, member)
    assert shards_of(codes) == {2}
    assert [member.num_running for member in pool.members] == [3, 3, 4]
    assert shards_of(chats) == {0, 1}


async def test_a_prompt_wakes_a_shard_that_may_take_it_also_when_another_has_less_to_do() -> None:
    pool = routed("chat", "code")
    ask(pool, "code", 1)
    schedule(pool, pool.members[1])
    wakes = [member.num_wakes for member in pool.members]
    ask(pool, "code", 1, start=10)
    assert [member.num_wakes for member in pool.members] == [wakes[0], wakes[1] + 1]


async def test_a_shard_does_not_wait_for_others_that_cannot_help_it() -> None:
    pool = routed("chat", "code")
    chat, code = pool.members
    ask(pool, "chat", 4)
    schedule(pool, chat)
    ask(pool, "code", 1, start=100)
    schedule(pool, code)
    schedule(pool, code)
    assert not code.scheduler.has_slot
    waiting = [*ask(pool, "code", 1, start=200), *ask(pool, "chat", 1, start=300)]
    schedule(pool, chat)
    assert [request.shard for request in waiting] == [None, 0]


async def test_where_nobody_is_good_at_a_prompt_anybody_takes_it() -> None:
    pool = routed("chat", "code")
    requests = ask(pool, "code", 2)
    schedule(pool, pool.members[0])
    assert shards_of(requests) == {None}
    pool.members[1].scheduler = None
    pool.routes.serve(1, None)
    schedule(pool, pool.members[0])
    assert shards_of(requests) == {0}


async def test_kinds_that_are_not_told_apart_go_anywhere() -> None:
    pool = routed("code", admitted={"chat": frozenset([CHAT]), "maths": frozenset([FULL])})
    requests = ask(pool, "code", 2)
    schedule(pool, pool.members[0])
    assert shards_of(requests) == {0}


async def test_an_exact_answer_goes_to_any_shard_with_all_layers() -> None:
    pool = routed("chat", "code")
    request = make_request(1, prompt=Prompt(TEXTS["code"]), exact=True)
    pool.add(request)
    schedule(pool, pool.members[0])
    assert request.shard == 0


async def test_token_ids_are_not_left_to_shards_that_cannot_read_them() -> None:
    pool = routed("code")
    other = make_generation(target=make_target("chat", FakeTokenizer("other")))
    pool.routes.serve(1, other)
    request = make_request(1, prompt=None)
    pool.add(request)
    schedule(pool, pool.members[0])
    assert request.shard == 0


async def test_who_was_begun_goes_back_to_its_own_model_whatever_it_is_about() -> None:
    pool = routed("chat", "code")
    request = make_request(1, prompt=Prompt(TEXTS["code"]))
    request.start(0, GENERATIONS["chat"], 0.0)
    request.start_over()
    pool.add(request)
    schedule(pool, pool.members[1])
    schedule(pool, pool.members[0])
    assert request.shard == 0


KINDS = st.sampled_from(["chat", "code"])


@given(
    st.lists(st.sampled_from(list(GENERATIONS)), min_size=1, max_size=4),
    st.lists(st.tuples(KINDS, st.integers(1, 6)), min_size=1, max_size=6),
    st.randoms(),
)
def test_nobody_starves_and_nobody_is_answered_by_less_than_is_there(
    names: list[str], bursts: list[tuple[str, int]], random: Random
) -> None:
    async def play() -> None:
        pool = routed(*names)
        able = {
            kind: [index for index, name in enumerate(names) if name in ("full", kind)]
            or [*range(len(names))]
            for kind in TEXTS
        }
        asked: list[tuple[str, Request]] = []
        for number, (kind, count) in enumerate(bursts):
            asked += [(kind, request) for request in ask(pool, kind, count, start=100 * number)]
            for member in random.sample(pool.members, len(names)) * 4:
                schedule(pool, member)
        for kind, request in asked:
            assert request.shard is None or request.shard in able[kind]
            if request.shard is None:
                mine = [pool.members[index] for index in able[kind]]
                assert not any(one.num_running < 8 and one.scheduler.has_slot for one in mine)

    asyncio.run(play())
