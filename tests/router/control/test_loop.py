"""The loop: what it has carried out, what it writes down, and that it holds still where it must."""

import msgspec
import pytest

from router.catalog.profile import CandidateProfile
from router.catalog.repository import Candidate, Choice, Floor, Repository
from router.catalog.served_model import ServedModel
from router.control.loop import ReassessmentLoop
from router.fleet.swap import SwapOptions, SwapRefused
from router.policy.decision import DecisionKind
from router.policy.traffic import Answered
from router.text.prompt import Prompt
from shard.messages import ExitReport, StepOutput
from telemetry.audit import Decision, Outcome
from telemetry.cost import StepSample
from telemetry.history import History
from telemetry.window import ClassUse, Record, Window
from tests.router.fakes import make_request, make_served_model, make_target

FULL, SHALLOW, CODE = Choice("full", 30), Choice("chat", 15), Choice("code", 15)


def served_model(choice: Choice, epoch=0) -> ServedModel:
    target = make_target(choice.candidate)
    return make_served_model(epoch, target, depth=choice.depth, version=f"v-{choice}")


class FakeDispatcher:
    """A dispatcher that records served models and routes."""

    def __init__(self):
        self.served_models = {}
        self.reusable_tokens = 0.0
        self.admitted = {}

    def served_model(self, shard):
        return self.served_models.get(shard)

    def route(self, admitted):
        self.admitted = admitted


class FakeController:
    """A controller that changes shards at once, or fails on request."""

    def __init__(self, dispatcher):
        self.dispatcher = dispatcher
        self.pinned = None
        self.loop = None
        self.changes = []
        self.notes = []
        self.fails = None
        self.is_busy = False

    async def carry_out(self, change):
        if self.is_busy:
            raise SwapRefused("A change is under way.")
        self.changes.append(change)
        if self.fails is not None:
            return Decision(id="1", at=0.0, kind=change.kind, outcome=Outcome.ROLLED_BACK, error=self.fails)
        for shard, choice in change.layout.items():
            self.serve(shard, choice, len(self.changes))
        return Decision(id="1", at=0.0, kind=change.kind, outcome=Outcome.COMMITTED, phases_ms={"hold": 5.0})

    def serve(self, shard, choice, epoch=0):
        """Change a shard, as an operator would."""
        made = self.dispatcher.served_models[shard] = served_model(choice, epoch)
        self.loop.observer.on_shard_ready(shard, made)

    def note(self, kind, by, why, **more):
        self.notes.append((kind, why))


class FakeStore:
    """A store that returns equal telemetry for every choice, with a cost by depth."""

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


def world_of(*candidates: Candidate, num_shards: int) -> tuple[ReassessmentLoop, FakeController, FakeStore]:
    """A loop whose shards all serve the first candidate at full depth."""
    profile = [
        CandidateProfile(
            candidate=candidate,
            num_layers=30,
            layer_bytes=7 << 20,
            other_bytes=50 << 20,
            kv_bytes=768,
            proven={15: 0.9, 30: 1.0} if candidate.depths else {30: 1.0},
        )
        for candidate in candidates
    ]
    repository = Repository(candidates=candidates, floor=Floor(agreement=0.8))
    controller, store = FakeController(FakeDispatcher()), FakeStore()
    loop = ReassessmentLoop(
        repository,
        {known.candidate.name: known for known in profile},
        controller.dispatcher,
        controller,
        store,
        SwapOptions(),
    )
    controller.loop = loop
    for shard in range(num_shards):
        controller.serve(shard, FULL)
    return loop, controller, store


@pytest.fixture
async def split_world():
    """A loop of four shards, with exits for each of two classes."""
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


def answer(loop: ReassessmentLoop, count: int, choice: Choice = FULL) -> None:
    for _ in range(count):
        loop.observer.policy_state.on_answered(Answered(choice, "chat", 50, 40, choice.depth))


def ask_for_both(loop: ReassessmentLoop, count: int, turn: tuple[str, ...] = ("chat", "code")) -> None:
    """Chat and code in turn, each answered by what the shards with exits of its own serve, if there are."""
    for index in range(count):
        kind = turn[index % len(turn)]
        author = next(
            (choice for choice in loop.observer.policy_state.shards if choice.candidate == kind), FULL
        )
        loop.observer.policy_state.on_answered(Answered(author, kind, 50, 40, author.depth))


async def until_split(loop: ReassessmentLoop) -> None:
    for _ in range(8):
        ask_for_both(loop, 40)
        await loop.reassess()
        if loop.observer.policy_state.split:
            return
    raise AssertionError(loop.state.why)


def served(controller: FakeController) -> list[str]:
    return [made.target.name for made in controller.dispatcher.served_models.values()]


async def test_it_tries_on_one_shard_while_the_others_serve_and_then_changes_all(world):
    loop, controller, _ = world
    answer(loop, 10)
    await loop.reassess()
    assert [(change.kind, change.to, tuple(change.layout)) for change in controller.changes] == [
        ("evaluate", SHALLOW, (2,))
    ]
    assert served(controller) == ["full", "full", "chat"]
    answer(loop, 5, SHALLOW)
    await loop.reassess()
    assert (controller.changes[-1].kind, tuple(controller.changes[-1].layout)) == (
        DecisionKind.SWITCH,
        (0, 1),
    )
    assert served(controller) == ["chat"] * 3
    assert controller.changes[-1].seen["prompts"] == {"chat": 1.0}
    assert {row["candidate"] for row in controller.changes[-1].considered} == {"full", "chat"}


async def test_what_was_tried_and_is_not_chosen_is_taken_back(world):
    loop, controller, _ = world
    answer(loop, 10)
    await loop.reassess()
    profile = loop.observer.policy_state.profiles
    profile["chat"] = msgspec.structs.replace(profile["chat"], proven={30: 1.0})
    answer(loop, 5, SHALLOW)
    await loop.reassess()
    assert (controller.changes[-1].kind, tuple(controller.changes[-1].layout)) == (DecisionKind.STAY, (2,))
    assert served(controller) == ["full"] * 3


async def test_without_redis_it_changes_nothing_and_says_so_once(world):
    loop, controller, store = world
    store.is_there = False
    answer(loop, 200)
    await loop.reassess()
    await loop.reassess()
    assert not controller.changes
    assert controller.notes == [("hold", "Redis is away: nothing is changed until it is back.")]
    store.is_there = True
    await loop.reassess()
    assert controller.notes[1][0] == "resume"
    assert controller.changes


async def test_what_is_pinned_is_left_alone(world):
    loop, controller, _ = world
    controller.pinned = FULL
    answer(loop, 200)
    await loop.reassess()
    assert not controller.changes


async def test_what_a_person_has_changed_is_what_serves(world):
    loop, controller, _ = world
    for shard in range(3):
        controller.serve(shard, SHALLOW, 1)
    assert loop.state.serving == str(SHALLOW)  # and this is told before the loop looks again
    await loop.reassess()
    assert loop.observer.policy_state.serving == SHALLOW


async def test_what_cannot_be_loaded_is_not_asked_for_again(world):
    loop, controller, _ = world
    controller.fails = "There is no such file."
    answer(loop, 10)
    await loop.reassess()
    await loop.reassess()
    answer(loop, 300)
    await loop.reassess()
    assert len(controller.changes) == 1
    assert loop.observer.policy_state.serving == FULL
    assert loop.observer.policy_state.trying is None


async def test_a_change_that_is_under_way_is_waited_for(world):
    loop, controller, _ = world
    controller.is_busy = True
    answer(loop, 10)
    await loop.reassess()
    controller.is_busy = False
    await loop.reassess()
    assert len(controller.changes) == 1


async def test_breaches_wake_it_and_are_answered(world):
    loop, controller, _ = world
    for shard in range(3):
        controller.serve(shard, SHALLOW, 1)
    await loop.reassess()
    loop.observer.woken.clear()
    report = ExitReport(tokens_by_exit={15: 60}, breaches=40)
    for number in range(6):
        step = StepOutput(number, [], [], 10, 60, exits=report, epoch=1)
        loop.observer.on_step(number % 3, step)
    assert loop.observer.woken.is_set()
    await loop.reassess()
    assert controller.changes[-1].kind == DecisionKind.DEEPEN
    assert "under threshold" in controller.changes[-1].why


async def test_a_decision_to_stay_is_written_down_once(world):
    loop, controller, _ = world
    loop.observer.policy_state.profiles.pop("chat")
    answer(loop, 10)
    await loop.reassess()
    await loop.reassess()
    assert [kind for kind, _ in controller.notes] == ["stay"]


async def test_a_split_changes_just_the_shards_that_serve_something_else(split_world):
    loop, controller, _ = split_world
    await until_split(loop)
    change = controller.changes[-1]
    assert change.kind == DecisionKind.SPLIT
    assert sorted(served(controller)) == ["chat", "chat", "code", "code"]
    assert len(change.layout) < 4  # the shard that has tried keeps what it has
    assert change.chosen["prompts"] == {"chat": "chat at 15 layers", "code": "code at 15 layers"}
    named = {shard: name for name, shards in change.chosen["shards"].items() for shard in shards}
    assert named == {shard: str(made.choice) for shard, made in controller.dispatcher.served_models.items()}


async def test_prompts_are_routed_before_a_shard_serves_what_is_not_for_all(split_world):
    loop, controller, _ = split_world
    ask_for_both(loop, 40)
    await loop.reassess()
    assert controller.changes[0].kind == "evaluate"
    assert FULL in controller.dispatcher.admitted["chat"] & controller.dispatcher.admitted["code"]
    tried = controller.changes[0].to
    assert [name for name, able in controller.dispatcher.admitted.items() if tried in able] == [
        tried.candidate
    ]


async def test_a_split_that_fails_leaves_what_served(split_world):
    loop, controller, _ = split_world
    for _ in range(50):
        if controller.changes and CODE in controller.changes[-1].layout.values():
            break
        ask_for_both(loop, 40)
        await loop.reassess()
    before = served(controller)
    controller.fails = "There is no such file."
    ask_for_both(loop, 40)
    await loop.reassess()
    assert controller.changes[-1].kind == DecisionKind.SPLIT
    assert not loop.observer.policy_state.split
    assert served(controller) == before
    num_orders = len(controller.changes)
    controller.fails = None
    ask_for_both(loop, 40)
    await loop.reassess()
    assert all(change.kind != DecisionKind.SPLIT for change in controller.changes[num_orders:])


async def test_shards_that_could_not_be_shared_out_anew_are_not_asked_again_at_once(split_world):
    loop, controller, _ = split_world
    await until_split(loop)
    controller.fails = "The shard died meanwhile."
    num_orders = len(controller.changes)
    while len(controller.changes) == num_orders:
        ask_for_both(loop, 160, ("chat",) * 4 + ("code",))
        await loop.reassess()
    assert sorted(controller.changes[-1].layout.values()) == [SHALLOW]
    await loop.reassess()
    assert len(controller.changes) == num_orders + 1
    assert sorted(served(controller)) == ["chat", "chat", "code", "code"]


async def test_a_split_is_over_when_a_person_has_changed_all_shards(split_world):
    loop, controller, _ = split_world
    await until_split(loop)
    controller.pinned = FULL
    for shard in range(4):
        controller.serve(shard, FULL, 9)
    await loop.reassess()
    assert not loop.observer.policy_state.split
    assert loop.observer.policy_state.serving == FULL


async def test_a_shard_that_a_person_has_changed_is_given_back_to_the_split(split_world):
    loop, controller, _ = split_world
    await until_split(loop)
    controller.serve(0, FULL, 9)
    ask_for_both(loop, 200)
    await loop.reassess()
    assert tuple(controller.changes[-1].layout) == (0,)
    assert sorted(served(controller)) == ["chat", "chat", "code", "code"]


async def test_breaches_of_one_choice_of_a_split_are_answered_though_the_other_has_none(split_world):
    loop, controller, _ = split_world
    await until_split(loop)
    served_models = controller.dispatcher.served_models
    for number in range(12):
        for shard, made in served_models.items():
            breaches = 18 if made.choice == CODE else 0
            report = ExitReport(tokens_by_exit={15: 20}, breaches=breaches)
            step = StepOutput(number, [], [], 10, 20, exits=report, epoch=made.epoch)
            loop.observer.on_step(shard, step)
    await loop.reassess()
    assert controller.changes[-1].kind == DecisionKind.SWITCH
    assert "tokens left code at 15 layers under threshold" in controller.changes[-1].why
    assert not loop.observer.policy_state.split
    assert {made.choice.depth for made in controller.dispatcher.served_models.values()} == {30}


async def test_what_runs_on_from_before_a_split_is_no_breach_of_it(split_world):
    loop, controller, _ = split_world
    await until_split(loop)
    stranger = make_request(1, prompt=Prompt("Write a python function."))
    shard = next(
        shard for shard, made in controller.dispatcher.served_models.items() if made.choice == SHALLOW
    )
    stranger.start(shard, controller.dispatcher.served_models[shard], 0.0)
    loop.observer.on_started(stranger)
    report = ExitReport(tokens_by_exit={15: 500}, breaches=500)
    epoch = controller.dispatcher.served_models[shard].epoch
    loop.observer.on_step(shard, StepOutput(1, [], [], 10, 500, exits=report, epoch=epoch))
    assert not loop.observer.policy_state.watch.is_breached
    loop.observer.on_finished(stranger)
    loop.observer.on_step(shard, StepOutput(2, [], [], 10, 500, exits=report, epoch=epoch))
    assert loop.observer.policy_state.watch.is_breached


async def test_its_state_tells_when_it_compares_again_and_how_many_tokens_breached(world):
    loop, controller, _ = world
    loop.start()
    assert loop.state.next_in == 5
    answer(loop, 3)
    assert loop.state.next_in == 2
    answer(loop, 2)
    await loop.reassess()
    epoch = controller.dispatcher.served_models[0].epoch
    report = ExitReport(tokens_by_exit={30: 8}, breaches=2)
    loop.observer.on_step(0, StepOutput(1, [], [], 10, 8, exits=report, epoch=epoch))
    [breaches] = loop.state.breaches
    assert (breaches.choice, breaches.breaches, breaches.tokens) == ("full at 30 layers", 2, 8)
    assert (breaches.limit, breaches.window) == (50, 100)
    await loop.stop()
