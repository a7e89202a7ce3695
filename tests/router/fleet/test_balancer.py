"""Who takes what: load spreads evenly, the least busy goes first, nobody waits for a shard that cannot."""

import asyncio
from random import Random
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from router.catalog.repository import Choice
from router.catalog.served_model import ModelIdentity, Requirements, ServedModel
from router.fleet.balancer import Balancer, water_level
from router.fleet.live_requests import RequestRegistry
from router.scheduling.prefix_index import PrefixIndex
from router.scheduling.request import Request
from router.scheduling.scheduler import Limits, Scheduler
from router.text.prompt import Prompt
from tests.router.fakes import FakeTokenizer, make_request, make_served_model, make_spec, make_target

TEXTS = {"chat": "Tell me about the sea.", "code": "Write a python function."}
SERVED_MODELS = {name: make_served_model(target=make_target(name)) for name in ("full", "chat", "code")}
FULL, CHAT, CODE = (served_model.choice for served_model in SERVED_MODELS.values())
BY_CLASS = {"chat": frozenset([FULL, CHAT]), "code": frozenset([FULL, CODE])}
LIMITS = Limits(max_batch_size=8, max_batch_tokens=512, block_size=16)


class PlayedShard:
    def __init__(self, shard: int, balancer: Balancer, served_model: ServedModel):
        self.scheduler: Scheduler | None = Scheduler(shard, LIMITS, served_model, balancer.queue)
        self.is_draining = False
        self.is_responsive = True
        self.is_hopeless = False
        self.num_wakes = 0

    def has_model(self, identity: ModelIdentity) -> bool:
        return self.scheduler is not None and self.scheduler.has_model(identity)

    def can_serve(self, requirements: Requirements) -> bool:
        return self.scheduler is not None and self.scheduler.can_serve(requirements)

    def wake(self) -> None:
        self.num_wakes += 1

    @property
    def num_running(self) -> int:
        return self.scheduler.num_running


def balancer_of(num_shards: int) -> Any:
    balancer = Balancer(RequestRegistry())
    balancer.shards = [PlayedShard(shard, balancer, make_served_model()) for shard in range(num_shards)]
    return balancer


def routed(*names: str, admitted: dict[str, frozenset[Choice]] = BY_CLASS) -> Any:
    """A balancer whose shards serve what is named."""
    balancer = Balancer(RequestRegistry())
    for shard, name in enumerate(names):
        balancer.shards.append(PlayedShard(shard, balancer, SERVED_MODELS[name]))
    balancer.route(admitted)
    return balancer


def arrive(balancer: Balancer, count: int, start: int = 0) -> None:
    for id in range(start, start + count):
        balancer.add(make_request(id))


def ask(balancer: Balancer, kind: str, count: int = 1, start: int = 0) -> list[Request]:
    requests = [make_request(id, prompt=Prompt(TEXTS[kind])) for id in range(start, start + count)]
    for request in requests:
        balancer.add(request)
    return requests


def schedule(balancer: Balancer, shard: PlayedShard) -> None:
    shard.scheduler.schedule(0.0, balancer.quota(shard))


def shards_of(requests: list[Request]) -> set[int | None]:
    return {request.shard for request in requests}


async def test_a_burst_spreads_evenly_whoever_schedules_first() -> None:
    balancer = balancer_of(4)
    arrive(balancer, 16)
    for shard in balancer.shards:
        schedule(balancer, shard)
    assert [shard.num_running for shard in balancer.shards] == [4, 4, 4, 4]


async def test_the_least_busy_shard_is_woken_and_the_others_leave_the_request_to_it() -> None:
    balancer = balancer_of(3)
    arrive(balancer, 5)
    for shard in balancer.shards:
        schedule(balancer, shard)
    assert [shard.num_running for shard in balancer.shards] == [2, 2, 1]
    wakes = [shard.num_wakes for shard in balancer.shards]
    arrive(balancer, 1, start=10)
    assert [shard.num_wakes for shard in balancer.shards] == [wakes[0], wakes[1], wakes[2] + 1]
    for shard in balancer.shards:
        schedule(balancer, shard)
    assert [shard.num_running for shard in balancer.shards] == [2, 2, 2]


async def test_a_shard_without_a_free_slot_is_not_woken_and_still_left_its_share() -> None:
    balancer = balancer_of(2)
    busy, other = balancer.shards
    arrive(balancer, 1)
    schedule(balancer, busy)
    schedule(balancer, busy)
    assert not busy.scheduler.has_slot
    other.is_responsive = False
    arrive(balancer, 1, start=5)
    assert busy.num_wakes == 1
    assert len(balancer.queue) == 1


async def test_nobody_waits_for_a_shard_that_is_gone_late_or_draining() -> None:
    balancer = balancer_of(4)
    gone, late, draining, serving = balancer.shards
    gone.scheduler, late.is_responsive, draining.is_draining = None, False, True
    arrive(balancer, 8)
    schedule(balancer, draining)
    schedule(balancer, serving)
    assert [late.num_running, draining.num_running, serving.num_running] == [0, 0, 8]


@given(st.lists(st.integers(0, 1000), min_size=1), st.integers(0, 10_000))
def test_the_level_holds_just_what_was_poured(loads: list[int], amount: int) -> None:
    level = water_level(loads, amount)
    assert level >= min(loads)
    assert abs(sum(max(0.0, level - load) for load in loads) - amount) < 1e-6 * (1 + amount)


@given(st.lists(st.integers(1, 12), min_size=1, max_size=6), st.randoms())
def test_what_waits_is_always_taken_while_somebody_has_room(bursts: list[int], random: Random) -> None:
    async def play() -> None:
        balancer = balancer_of(3)
        for number, burst in enumerate(bursts):
            arrive(balancer, burst, start=100 * number)
            for shard in random.sample(balancer.shards, 3) * 3:
                schedule(balancer, shard)
            is_full = all(shard.num_running == 8 for shard in balancer.shards)
            slots = any(shard.scheduler.has_slot for shard in balancer.shards)
            assert len(balancer.queue) == 0 or is_full or not slots

    asyncio.run(play())


async def test_prompts_go_to_shards_that_are_good_at_them() -> None:
    balancer = routed("chat", "chat", "code")
    chats, codes = ask(balancer, "chat", 6), ask(balancer, "code", 4, start=100)
    for shard in balancer.shards:
        schedule(balancer, shard)
    assert shards_of(codes) == {2}
    assert [shard.num_running for shard in balancer.shards] == [3, 3, 4]
    assert shards_of(chats) == {0, 1}


async def test_a_prompt_wakes_a_shard_that_may_take_it_also_when_another_has_less_to_do() -> None:
    balancer = routed("chat", "code")
    ask(balancer, "code", 1)
    schedule(balancer, balancer.shards[1])
    wakes = [shard.num_wakes for shard in balancer.shards]
    ask(balancer, "code", 1, start=10)
    assert [shard.num_wakes for shard in balancer.shards] == [wakes[0], wakes[1] + 1]


async def test_a_shard_does_not_wait_for_others_that_cannot_help_it() -> None:
    balancer = routed("chat", "code")
    chat, code = balancer.shards
    ask(balancer, "chat", 4)
    schedule(balancer, chat)
    ask(balancer, "code", 1, start=100)
    schedule(balancer, code)
    schedule(balancer, code)
    assert not code.scheduler.has_slot
    waiting = [*ask(balancer, "code", 1, start=200), *ask(balancer, "chat", 1, start=300)]
    schedule(balancer, chat)
    assert [request.shard for request in waiting] == [None, 0]


async def test_where_nobody_is_good_at_a_prompt_anybody_takes_it() -> None:
    balancer = routed("chat", "code")
    requests = ask(balancer, "code", 2)
    schedule(balancer, balancer.shards[0])
    assert shards_of(requests) == {None}
    balancer.shards[1].scheduler = None
    balancer.routes.refresh()
    schedule(balancer, balancer.shards[0])
    assert shards_of(requests) == {0}


async def test_kinds_that_are_not_told_apart_go_anywhere() -> None:
    balancer = routed("code", admitted={"chat": frozenset([CHAT]), "maths": frozenset([FULL])})
    requests = ask(balancer, "code", 2)
    schedule(balancer, balancer.shards[0])
    assert shards_of(requests) == {0}


async def test_an_exact_answer_goes_to_any_shard_with_all_layers() -> None:
    balancer = routed("chat", "code")
    request = make_request(1, prompt=Prompt(TEXTS["code"]), exact=True)
    balancer.add(request)
    schedule(balancer, balancer.shards[0])
    assert request.shard == 0


async def test_token_ids_are_not_left_to_shards_that_cannot_read_them() -> None:
    balancer = routed("code")
    other = make_served_model(target=make_target("chat", FakeTokenizer("other")))
    balancer.shards.append(PlayedShard(1, balancer, other))
    balancer.routes.refresh()
    request = make_request(1, prompt=None)
    balancer.add(request)
    schedule(balancer, balancer.shards[0])
    assert request.shard == 0


async def test_who_was_begun_goes_back_to_its_own_model_whatever_it_is_about() -> None:
    balancer = routed("chat", "code")
    request = make_request(1, prompt=Prompt(TEXTS["code"]))
    request.start(0, SERVED_MODELS["chat"], 0.0)
    request.start_over()
    balancer.add(request)
    schedule(balancer, balancer.shards[1])
    schedule(balancer, balancer.shards[0])
    assert request.shard == 0


KINDS = st.sampled_from(["chat", "code"])


@given(
    st.lists(st.sampled_from(list(SERVED_MODELS)), min_size=1, max_size=4),
    st.lists(st.tuples(KINDS, st.integers(1, 6)), min_size=1, max_size=6),
    st.randoms(),
)
def test_nobody_starves_and_nobody_is_answered_by_less_than_is_there(
    names: list[str], bursts: list[tuple[str, int]], random: Random
) -> None:
    async def play() -> None:
        balancer = routed(*names)
        able = {
            kind: [index for index, name in enumerate(names) if name in ("full", kind)]
            or [*range(len(names))]
            for kind in TEXTS
        }
        asked: list[tuple[str, Request]] = []
        for number, (kind, count) in enumerate(bursts):
            asked += [(kind, request) for request in ask(balancer, kind, count, start=100 * number)]
            for shard in random.sample(balancer.shards, len(names)) * 4:
                schedule(balancer, shard)
        for kind, request in asked:
            assert request.shard is None or request.shard in able[kind]
            if request.shard is None:
                mine = [balancer.shards[index] for index in able[kind]]
                assert not any(shard.num_running < 8 and shard.scheduler.has_slot for shard in mine)

    asyncio.run(play())


def knowing(num_shards: int) -> Any:
    balancer = Balancer(RequestRegistry())
    for number in range(num_shards):
        shard = PlayedShard(number, balancer, make_served_model())
        shard.scheduler = Scheduler(
            number, LIMITS, make_served_model(), balancer.queue, prefixes=PrefixIndex(100)
        )
        balancer.shards.append(shard)
    return balancer


async def test_a_request_goes_where_its_beginning_was_computed() -> None:
    balancer = knowing(4)
    spec, places = make_spec(num_prompt_tokens=64, first=5000), []
    for number in range(8):  # whichever shard is compared first
        request = Request(number, spec, 0.0)
        balancer.add(request)
        [woken] = [shard for shard in balancer.shards if shard.num_wakes]
        places.append(balancer.shards.index(woken))
        woken.scheduler.schedule(0.0, balancer.quota(woken))
        woken.scheduler.drop(request)
        woken.scheduler.in_flight.clear()
        woken.scheduler.schedule(0.0)
        woken.scheduler.in_flight.clear()
        woken.num_wakes = 0
    assert set(places) == {places[0]}


async def test_no_shard_gets_all_that_begins_alike() -> None:
    balancer = knowing(3)
    spec, taken = make_spec(num_prompt_tokens=64, max_new_tokens=64, first=5000), [0, 0, 0]
    for number in range(18):
        balancer.add(Request(number, spec, 0.0))
        woken = max(balancer.shards, key=lambda shard: shard.num_wakes)
        assert woken.num_wakes == 1
        woken.num_wakes = 0
        woken.scheduler.schedule(0.0, balancer.quota(woken))
        woken.scheduler.in_flight.clear()
        taken[balancer.shards.index(woken)] += 1
        assert not balancer.queue
    assert min(taken) >= 4


async def test_a_shard_takes_what_it_has_computed_and_leaves_what_another_has() -> None:
    balancer = knowing(2)
    specs = [make_spec(num_prompt_tokens=64, first=first) for first in (5000, 6000, 7000)]
    for number, (shard, spec) in enumerate(zip(balancer.shards, specs, strict=False)):
        begun = Request(number, spec, 0.0)
        balancer.queue.add(begun)
        shard.scheduler.schedule(0.0)
        shard.scheduler.drop(begun)
        shard.scheduler.in_flight.clear()
    waiting = [Request(10 + number, specs[which], 0.0) for number, which in enumerate((1, 2, 0))]
    for request in waiting:
        balancer.queue.add(request)
    saving = balancer.quota(balancer.shards[0]).saving
    assert [saving(request) for request in waiting] == [-64, 0, 64]
    balancer.shards[0].scheduler.num_outstanding_tokens = 0
    balancer.shards[1].scheduler.num_outstanding_tokens = 40  # busier: what it has counts less
    assert [saving(request) for request in waiting] == [-24, 0, 64]


async def test_without_lookahead_requests_keep_their_order() -> None:
    balancer = Balancer(RequestRegistry(), lookahead=1)
    balancer.shards.append(knowing(1).shards[0])
    balancer.queue.add(make_request(1))
    assert balancer.quota(balancer.shards[0]).saving is None
