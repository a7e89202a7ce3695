"""The loop: what it has carried out, what it writes down, and that it holds still where it must."""

import msgspec
import pytest

from router.catalog.profile import Facts
from router.catalog.repository import Candidate, Choice, Floor, Repository
from router.catalog.served_model import Generation
from router.control.loop import Loop
from router.fleet.swap import SwapRefused, Wish
from router.policy.decision import Kind
from router.policy.traffic import Answered
from router.text.prompt import Prompt
from shard.messages import ExitReport, StepOutput
from telemetry.audit import Decision, Outcome
from telemetry.cost import StepSample
from telemetry.history import History
from telemetry.sample import ClassUse, Record, Window
from tests.router.fakes import make_generation, make_request, make_target

FULL, SHALLOW, CODE = Choice("full", 30), Choice("chat", 15), Choice("code", 15)


def generation(choice: Choice, ticket=0) -> Generation:
    target = make_target(choice.candidate)
    return make_generation(ticket, target, depth=choice.depth, version=f"v-{choice}")


class FakeConductor:
    """Changes the shards of a loop at once, or fails as it is told."""

    def __init__(self):
        self.pinned = None
        self.loop = None
        self.orders = []
        self.notes = []
        self.fails = None
        self.is_busy = False

    async def carry_out(self, order):
        if self.is_busy:
            raise SwapRefused("A change is under way.")
        self.orders.append(order)
        if self.fails is not None:
            return Decision(id="1", at=0.0, kind=order.kind, outcome=Outcome.ROLLED_BACK, error=self.fails)
        for shard, choice in order.layout.items():
            self.loop.listener.on_shard_ready(shard, generation(choice, len(self.orders)))
        return Decision(id="1", at=0.0, kind=order.kind, outcome=Outcome.COMMITTED, phases_ms={"hold": 5.0})

    def route(self, admitted):
        self.admitted = admitted

    def note(self, kind, by, why, **more):
        self.notes.append((kind, why))


class FakeStore:
    """Telemetry that says the same of every choice asked for, at a cost by its depth."""

    router = "here"

    def __init__(self):
        self.history = History()
        self.is_there = True

    async def flush(self):
        return self.is_there

    async def records(self, last_s):
        if not self.is_there:
            return None
        return [
            Record(0, choice.candidate, choice.depth, window(choice), "here")
            for choice in (FULL, SHALLOW, CODE)
        ]


def window(choice: Choice) -> Window:
    made = Window(
        start=0.0, end=1e12, requests=50, num_steps=40, step_ms=4000.0, tokens_by_exit={choice.depth: 2000}
    )
    made.classes[choice.candidate] = ClassUse(50, 2000, 2000 * choice.depth)
    for batch in (1, 4, 8, 16) * 10:
        made.cost.add(StepSample(choice.depth, batch, batch * choice.depth, 10 + choice.depth + 0.1 * batch))
    return made


def world_of(*candidates: Candidate, num_shards: int) -> tuple[Loop, FakeConductor, FakeStore]:
    """All shards serve the first one, whole."""
    facts = [
        Facts(
            candidate=one,
            num_layers=30,
            layer_bytes=7 << 20,
            other_bytes=50 << 20,
            kv_bytes=768,
            proven={15: 0.9, 30: 1.0} if one.depths else {30: 1.0},
        )
        for one in candidates
    ]
    repository = Repository(candidates=candidates, floor=Floor(agreement=0.8))
    conductor, store = FakeConductor(), FakeStore()
    loop = Loop(repository, {one.candidate.name: one for one in facts}, conductor, store, Wish())
    conductor.loop = loop
    for shard in range(num_shards):
        loop.listener.on_shard_ready(shard, generation(FULL))
    return loop, conductor, store


@pytest.fixture
async def split_world():
    """Four shards, and exits for each of two kinds of prompts."""
    own = [
        Candidate(name=name, model="model", exits="heads", depths=(15,), prompts=(name,))
        for name in ("chat", "code")
    ]
    return world_of(Candidate(name="full", model="model"), *own, num_shards=4)


@pytest.fixture
async def world():
    full = Candidate(name="full", model="model")
    chat = Candidate(name="chat", model="model", exits="heads", depths=(15,))
    return world_of(full, chat, num_shards=3)


def answer(loop: Loop, count: int, choice: Choice = FULL) -> None:
    for _ in range(count):
        loop.listener.mind.on_answered(Answered(choice, "chat", 50, 40, choice.depth))


def ask_for_both(loop: Loop, count: int, turn: tuple[str, ...] = ("chat", "code")) -> None:
    """Chat and code in turn, each answered by what the shards with exits of its own serve, if there are."""
    for index in range(count):
        kind = turn[index % len(turn)]
        author = next((one for one in loop.listener.mind.shards if one.candidate == kind), FULL)
        loop.listener.mind.on_answered(Answered(author, kind, 50, 40, author.depth))


async def until_split(loop: Loop) -> None:
    for _ in range(8):
        ask_for_both(loop, 40)
        await loop.reassess()
        if loop.listener.mind.split:
            return
    raise AssertionError(loop.state.why)


def served(loop: Loop) -> list[str]:
    return [made.target.name for _, made in sorted(loop.listener.generations.items())]


async def test_it_tries_on_one_shard_while_the_others_serve_and_then_changes_all(world):
    loop, conductor, _ = world
    answer(loop, 10)
    await loop.reassess()
    assert [(order.kind, order.to, tuple(order.layout)) for order in conductor.orders] == [
        ("evaluate", SHALLOW, (2,))
    ]
    assert served(loop) == ["full", "full", "chat"]
    answer(loop, 5, SHALLOW)
    await loop.reassess()
    assert (conductor.orders[-1].kind, tuple(conductor.orders[-1].layout)) == (Kind.SWITCH, (0, 1))
    assert served(loop) == ["chat"] * 3
    assert conductor.orders[-1].seen["prompts"] == {"chat": 1.0}
    assert {row["candidate"] for row in conductor.orders[-1].considered} == {"full", "chat"}


async def test_what_was_tried_and_is_not_chosen_is_taken_back(world):
    loop, conductor, _ = world
    answer(loop, 10)
    await loop.reassess()
    facts = loop.listener.mind.facts
    facts["chat"] = msgspec.structs.replace(facts["chat"], proven={30: 1.0})
    answer(loop, 5, SHALLOW)
    await loop.reassess()
    assert (conductor.orders[-1].kind, tuple(conductor.orders[-1].layout)) == (Kind.STAY, (2,))
    assert served(loop) == ["full"] * 3


async def test_without_redis_it_changes_nothing_and_says_so_once(world):
    loop, conductor, store = world
    store.is_there = False
    answer(loop, 200)
    await loop.reassess()
    await loop.reassess()
    assert not conductor.orders
    assert conductor.notes == [("hold", "Redis is away: nothing is changed until it is back.")]
    store.is_there = True
    await loop.reassess()
    assert conductor.notes[1][0] == "resume"
    assert conductor.orders


async def test_what_is_pinned_is_left_alone(world):
    loop, conductor, _ = world
    conductor.pinned = FULL
    answer(loop, 200)
    await loop.reassess()
    assert not conductor.orders


async def test_what_a_person_has_changed_is_what_serves(world):
    loop, _, _ = world
    for shard in range(3):
        loop.listener.on_shard_ready(shard, generation(SHALLOW, 1))
    await loop.reassess()
    assert loop.listener.mind.serving == SHALLOW


async def test_what_cannot_be_loaded_is_not_asked_for_again(world):
    loop, conductor, _ = world
    conductor.fails = "There is no such file."
    answer(loop, 10)
    await loop.reassess()
    await loop.reassess()
    answer(loop, 300)
    await loop.reassess()
    assert len(conductor.orders) == 1
    assert loop.listener.mind.serving == FULL
    assert loop.listener.mind.trying is None


async def test_a_change_that_is_under_way_is_waited_for(world):
    loop, conductor, _ = world
    conductor.is_busy = True
    answer(loop, 10)
    await loop.reassess()
    conductor.is_busy = False
    await loop.reassess()
    assert len(conductor.orders) == 1


async def test_breaches_wake_it_and_are_answered(world):
    loop, conductor, _ = world
    for shard in range(3):
        loop.listener.on_shard_ready(shard, generation(SHALLOW, 1))
    await loop.reassess()
    loop.listener.woken.clear()
    report = ExitReport(tokens_by_exit={15: 60}, breaches=40)
    for number in range(6):
        step = StepOutput(number, [], [], 10, 60, exits=report, generation=1)
        loop.listener.on_step(number % 3, step)
    assert loop.listener.woken.is_set()
    await loop.reassess()
    assert conductor.orders[-1].kind == Kind.DEEPEN
    assert "under threshold" in conductor.orders[-1].why


async def test_a_decision_to_stay_is_written_down_once(world):
    loop, conductor, _ = world
    loop.listener.mind.facts.pop("chat")
    answer(loop, 10)
    await loop.reassess()
    await loop.reassess()
    assert [kind for kind, _ in conductor.notes] == ["stay"]


async def test_a_split_changes_just_the_shards_that_serve_something_else(split_world):
    loop, conductor, _ = split_world
    await until_split(loop)
    order = conductor.orders[-1]
    assert order.kind == Kind.SPLIT
    assert sorted(served(loop)) == ["chat", "chat", "code", "code"]
    assert len(order.layout) < 4  # the shard that has tried keeps what it has
    assert order.chosen["prompts"] == {"chat": "chat at 15 layers", "code": "code at 15 layers"}
    named = {shard: name for name, shards in order.chosen["shards"].items() for shard in shards}
    assert named == {shard: str(made.choice) for shard, made in loop.listener.generations.items()}


async def test_prompts_are_routed_before_a_shard_serves_what_is_not_for_all(split_world):
    loop, conductor, _ = split_world
    ask_for_both(loop, 40)
    await loop.reassess()
    assert conductor.orders[0].kind == "evaluate"
    assert FULL in conductor.admitted["chat"] & conductor.admitted["code"]
    tried = conductor.orders[0].to
    assert [name for name, able in conductor.admitted.items() if tried in able] == [tried.candidate]


async def test_a_split_that_fails_leaves_what_served(split_world):
    loop, conductor, _ = split_world
    for _ in range(50):
        if conductor.orders and CODE in conductor.orders[-1].layout.values():
            break
        ask_for_both(loop, 40)
        await loop.reassess()
    before = served(loop)
    conductor.fails = "There is no such file."
    ask_for_both(loop, 40)
    await loop.reassess()
    assert conductor.orders[-1].kind == Kind.SPLIT
    assert not loop.listener.mind.split
    assert served(loop) == before
    num_orders = len(conductor.orders)
    conductor.fails = None
    ask_for_both(loop, 40)
    await loop.reassess()
    assert all(order.kind != Kind.SPLIT for order in conductor.orders[num_orders:])


async def test_shards_that_could_not_be_shared_out_anew_are_not_asked_again_at_once(split_world):
    loop, conductor, _ = split_world
    await until_split(loop)
    conductor.fails = "The shard died meanwhile."
    num_orders = len(conductor.orders)
    while len(conductor.orders) == num_orders:
        ask_for_both(loop, 160, ("chat",) * 4 + ("code",))
        await loop.reassess()
    assert sorted(conductor.orders[-1].layout.values()) == [SHALLOW]
    await loop.reassess()
    assert len(conductor.orders) == num_orders + 1
    assert sorted(served(loop)) == ["chat", "chat", "code", "code"]


async def test_a_split_is_over_when_a_person_has_changed_all_shards(split_world):
    loop, conductor, _ = split_world
    await until_split(loop)
    conductor.pinned = FULL
    for shard in range(4):
        loop.listener.on_shard_ready(shard, generation(FULL, 9))
    await loop.reassess()
    assert not loop.listener.mind.split
    assert loop.listener.mind.serving == FULL


async def test_a_shard_that_a_person_has_changed_is_given_back_to_the_split(split_world):
    loop, conductor, _ = split_world
    await until_split(loop)
    loop.listener.on_shard_ready(0, generation(FULL, 9))
    ask_for_both(loop, 200)
    await loop.reassess()
    assert tuple(conductor.orders[-1].layout) == (0,)
    assert sorted(served(loop)) == ["chat", "chat", "code", "code"]


async def test_breaches_of_one_choice_of_a_split_are_answered_though_the_other_has_none(split_world):
    loop, conductor, _ = split_world
    await until_split(loop)
    generations = loop.listener.generations
    for number in range(12):
        for shard, made in generations.items():
            breaches = 18 if made.choice == CODE else 0
            report = ExitReport(tokens_by_exit={15: 20}, breaches=breaches)
            step = StepOutput(number, [], [], 10, 20, exits=report, generation=made.ticket)
            loop.listener.on_step(shard, step)
    await loop.reassess()
    assert conductor.orders[-1].kind == Kind.SWITCH
    assert "tokens left code at 15 layers under threshold" in conductor.orders[-1].why
    assert not loop.listener.mind.split
    assert {made.choice.depth for made in loop.listener.generations.values()} == {30}


async def test_what_runs_on_from_before_a_split_is_no_breach_of_it(split_world):
    loop, _, _ = split_world
    await until_split(loop)
    stranger = make_request(1, prompt=Prompt("Write a python function."))
    shard = next(shard for shard, made in loop.listener.generations.items() if made.choice == SHALLOW)
    stranger.start(shard, loop.listener.generations[shard], 0.0)
    loop.listener.on_started(stranger)
    report = ExitReport(tokens_by_exit={15: 500}, breaches=500)
    ticket = loop.listener.generations[shard].ticket
    loop.listener.on_step(shard, StepOutput(1, [], [], 10, 500, exits=report, generation=ticket))
    assert not loop.listener.mind.watch.is_breached
    loop.listener.on_finished(stranger)
    loop.listener.on_step(shard, StepOutput(2, [], [], 10, 500, exits=report, generation=ticket))
    assert loop.listener.mind.watch.is_breached
