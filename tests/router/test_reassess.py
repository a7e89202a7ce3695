"""The loop: what it has carried out, what it writes down, and that it holds still where it must."""

import msgspec
import pytest

from router.generation import Generation
from router.policy.decision import Kind
from router.policy.seen import Facts
from router.policy.watch import Answered
from router.reassess import Loop
from router.repository import Candidate, Choice, Floor, Repository
from router.swap import SwapRefused, Wish
from shard.messages import ExitReport, StepOutput
from telemetry.audit import Decision, Outcome
from telemetry.cost import StepSample
from telemetry.history import History
from telemetry.sample import Record, Window
from tests.router.fakes import make_generation, make_target

FULL, SHALLOW = Choice("full", 30), Choice("chat", 15)


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
            Record(0, choice.candidate, choice.depth, window(choice), "here") for choice in (FULL, SHALLOW)
        ]


def window(choice: Choice) -> Window:
    made = Window(
        start=0.0, end=1e12, requests=50, num_steps=40, step_ms=4000.0, tokens_by_exit={choice.depth: 2000}
    )
    for batch in (1, 4, 8, 16) * 10:
        made.cost.add(StepSample(choice.depth, batch, batch * choice.depth, 10 + choice.depth + 0.1 * batch))
    return made


@pytest.fixture
async def world():
    full = Candidate(name="full", model="model")
    chat = Candidate(name="chat", model="model", exits="heads", depths=(15,))
    facts = [
        Facts(
            candidate=one,
            num_layers=30,
            layer_bytes=7 << 20,
            other_bytes=50 << 20,
            kv_bytes=768,
            proven=proven,
        )
        for one, proven in ((full, {30: 1.0}), (chat, {15: 0.9, 30: 1.0}))
    ]
    repository = Repository(candidates=(full, chat), floor=Floor(agreement=0.8))
    conductor, store = FakeConductor(), FakeStore()
    loop = Loop(repository, {one.candidate.name: one for one in facts}, conductor, store, Wish())
    conductor.loop = loop
    for shard in range(3):
        loop.listener.on_shard_ready(shard, generation(FULL))
    return loop, conductor, store


def answer(loop: Loop, count: int, choice: Choice = FULL) -> None:
    for _ in range(count):
        loop.listener.mind.on_answered(Answered(choice, "chat", 50, 40, choice.depth))


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
