"""A simulated environment of the policy: candidates with true costs, requests of several classes, noise."""

import random
from collections import Counter
from typing import Any

import msgspec

from router.catalog.profile import CandidateProfile
from router.catalog.repository import Candidate, Choice, Floor, Loop, Repository
from router.policy.decision import Decision, DecisionKind
from router.policy.observation import Device
from router.policy.reassessor import Now, Reassessor
from router.policy.traffic import Answered
from telemetry.cost import StepSample
from telemetry.history import History
from telemetry.window import ClassUse, Window

MIB = 2**20
NUM_LAYERS = 30
HEAD_LAYERS = 8.0  # what a step costs beside its layers, in layers


class Truth(msgspec.Struct, frozen=True):
    """True properties of a candidate. Shares by class; unnamed depths take the next lower one's."""

    sure: dict[str, dict[int, float]] = {}  # kind -> depth -> share of tokens over threshold
    agreement: dict[str, dict[int, float]] = {}  # kind -> depth -> with full depth
    layer_ms: float = 0.5

    def share(self, table: dict[str, dict[int, float]], kind: str, depth: int) -> float:
        known = [layer for layer in table.get(kind, {}) if layer <= depth]
        return 1.0 if depth == NUM_LAYERS or not known else table[kind][max(known)]


def profile_of(
    candidate: Candidate, proven: dict[int, float], num_layers: int = NUM_LAYERS
) -> CandidateProfile:
    return CandidateProfile(
        candidate=candidate,
        num_layers=num_layers,
        layer_bytes=7 * MIB,
        other_bytes=56 * MIB,
        kv_bytes=768,
        proven=proven,
    )


def candidate(name: str, depths: tuple[int, ...] = (), **rest) -> Candidate:
    return Candidate(name=name, model="model", exits="heads" if depths else None, depths=depths, **rest)


class World:
    """Serves requests one after the other on whatever the reassessor wants, and tells it."""

    def __init__(
        self,
        repository: Repository,
        profile: list[CandidateProfile],
        truths: dict[str, Truth],
        noise=0.1,
        seed=0,
    ):
        self.random = random.Random(seed)
        self.noise = noise
        self.truths = truths
        self.seconds = 1_000_000.0
        self.history = History()
        first = profile[0]
        serving = Choice(first.candidate.name, first.num_layers)
        device = Device(memory_bytes=1500 * MIB)
        self.policy_state = Reassessor(repository, device, serving, self.now)
        self.policy_state.profiles = {known.candidate.name: known for known in profile}
        self.diary: list[tuple[int, Decision]] = []
        self.failing: dict[Choice, str] = {}
        self._windows: dict[Choice, tuple[float, Window]] = {}

    @property
    def now(self) -> Now:
        return Now(self.seconds, self.seconds * 1000)

    @property
    def num_requests(self) -> int:
        return self.policy_state.watch.num_requests

    @property
    def changes(self) -> list[tuple[int, Decision]]:
        """Decisions that changed what serves, with how many requests had been answered by then."""
        return [
            (at, decision)
            for at, decision in self.diary
            if decision.kind not in (DecisionKind.STAY, DecisionKind.EVALUATE)
        ]

    def serve(self, count: int, kind="chat") -> None:
        """So many requests of one kind; a function of the index draws kinds."""
        for index in range(count):
            self.answer(kind(index) if callable(kind) else kind)
            if index % 5 == 4 or self.policy_state.trying or self.policy_state.watch.is_breached:
                self.reassess()

    def author(self, kind: str) -> Choice:
        """The choice that answers the next request."""
        return self.policy_state.trying or self.policy_state.serving

    def answer(self, kind: str) -> None:
        choice = self.author(kind)
        truth, num_tokens = self.truths[choice.candidate], max(4, round(self.random.gauss(40, 10)))
        window = self._window(choice)
        sure = truth.share(truth.sure, kind, choice.depth)
        breaches = sum(self.random.random() >= sure for _ in range(num_tokens))
        ms = 0.0
        for batch in (1, 4, 8, 8):
            layers = choice.depth
            true_ms = truth.layer_ms * (HEAD_LAYERS + layers) * (1 + 0.05 * batch)
            measured = true_ms * self.random.lognormvariate(0, self.noise)
            window.cost.add(StepSample(layers, batch, batch * layers, measured))
            window.num_steps += 1
            window.step_ms += measured
            ms += measured * num_tokens / 4
        window.requests += 1
        window.classes.setdefault(kind, ClassUse()).merge(ClassUse(1, num_tokens, num_tokens * choice.depth))
        exits = window.tokens_by_exit
        exits[choice.depth] = exits.get(choice.depth, 0) + num_tokens
        window.breaches += breaches
        if self.random.random() < 0.2:
            agreement = truth.share(truth.agreement, kind, choice.depth)
            agreeing = sum(self.random.random() < agreement for _ in range(num_tokens))
            window.add_answer(kind, num_tokens, agreeing, -1.0 * num_tokens)
        serves = choice in self.policy_state.served
        if serves or self.policy_state.trying is not None:
            self.policy_state.watch.on_step(choice, 8, num_tokens, breaches if serves else 0)
        self.policy_state.on_answered(Answered(choice, kind, 60, num_tokens, choice.depth, sure))
        self.seconds += ms / 8000

    def reassess(self) -> None:
        for _ in range(5):  # a trial that ends lets the choice follow
            self.policy_state.learn(
                self.history, {choice: self._window(choice) for choice in self._watched}, self.now
            )
            decision = self.policy_state.decide(self.history, self.now)
            if not self._carry_out(decision):
                return

    def _carry_out(self, decision: Decision) -> bool:
        """True if there was something to do."""
        is_new = decision.choice not in (self.policy_state.serving, self.policy_state.trying)
        if decision.considered:
            self.diary.append((self.num_requests, decision))
        if is_new and decision.choice in self.failing:
            self.policy_state.failed(decision, self.failing[decision.choice], self.now)
            return True
        if is_new:
            self.policy_state.note_change(decision.choice, 300.0)
        if is_new and decision.kind is DecisionKind.EVALUATE:
            self.policy_state.watch.on_spent(300.0)
        self.policy_state.took(decision, self.now)
        return is_new

    @property
    def _watched(self) -> list[Choice]:
        trying = self.policy_state.trying
        return [*self.policy_state.served, *([trying] if trying is not None else [])]

    def _window(self, choice: Choice) -> Window:
        since = self.policy_state.since_s(choice)
        known = self._windows.get(choice)
        if known is None or known[0] != since:
            known = self._windows[choice] = (since, Window(start=since))
        return known[1]


class Fleet(World):
    """Several shards, of which each request finds one that is good enough for it, if there is any."""

    def author(self, kind: str) -> Choice:
        able = self.policy_state.admitted.get(kind, self.policy_state.shards)
        return self.random.choice(
            [choice for choice in self.policy_state.shards if choice in able] or self.policy_state.shards
        )

    def _carry_out(self, decision: Decision) -> bool:
        policy_state, before = self.policy_state, self.policy_state.shards
        if decision.considered:
            self.diary.append((self.num_requests, decision))
        wanted = self._wanted(decision)
        new = [choice for old, choice in zip(before, wanted, strict=True) if old != choice]
        bad = next((choice for choice in new if choice in self.failing), None)
        if bad is not None:
            policy_state.failed(decision, self.failing[bad], self.now)
            return True
        for choice in new:
            policy_state.note_change(choice, 300.0)
        if new and decision.kind is DecisionKind.EVALUATE:
            policy_state.watch.on_spent(300.0 / len(wanted))
        policy_state.took(decision, self.now)
        policy_state.shards = wanted
        policy_state.watch.num_shards_of = Counter(wanted) if policy_state.split else {}
        return bool(new)

    def _wanted(self, decision: Decision) -> tuple[Choice, ...]:
        shards = self.policy_state.shards
        if decision.shards or not decision.considered:
            return decision.shards or shards
        if decision.kind is DecisionKind.EVALUATE:
            return (*shards[:-1], decision.choice)
        return (decision.choice,) * len(shards)


def fleet(num_shards: int, **rest) -> Fleet:
    made = paper_world(kind=Fleet, **rest)
    made.policy_state.shards = (made.policy_state.serving,) * num_shards
    made.policy_state.watch.num_shards = num_shards
    return made


def paper_world(floor=0.7, noise=0.1, seed=0, loop=None, kind=World, **rest) -> Any:
    """One model with exits for chat and exits for code, as the embedded one has them."""
    chat = candidate("chat", (10, 15, 20), prompts=("chat",))
    code = candidate("code", (10, 15, 20), prompts=("code",))
    full = candidate("full")
    repository = Repository(
        candidates=(full, chat, code), floor=Floor(agreement=floor), loop=loop or Loop(), **rest
    )
    proven = {10: 0.5, 15: 0.75, 20: 0.85, NUM_LAYERS: 1.0}
    at_home = {10: 0.4, 15: 0.75, 20: 0.9}
    abroad = {10: 0.1, 15: 0.2, 20: 0.3}
    good = {10: 0.6, 15: 0.8, 20: 0.9}
    bad = {10: 0.3, 15: 0.4, 20: 0.5}
    truths = {
        "full": Truth(),
        "chat": Truth({"chat": at_home, "code": abroad}, {"chat": good, "code": bad}),
        "code": Truth({"code": at_home, "chat": abroad}, {"code": good, "chat": bad}),
    }
    profiles = [profile_of(full, {NUM_LAYERS: 1.0}), profile_of(chat, proven), profile_of(code, proven)]
    return kind(repository, profiles, truths, noise, seed)
