"""The state of reassessment: takes events, measurements and outcomes in, gives decisions out.

Knows no clock, no Redis and no shard. The loop reports events, passes windows of telemetry, asks for a
decision, carries it out and reports the outcome.
"""

from collections.abc import Mapping

import msgspec

from router.catalog.profile import CandidateProfile
from router.catalog.repository import Choice, Repository
from router.policy.classes import admitted, classes_excluded_by, demand_for
from router.policy.decide import decide
from router.policy.decision import Decision, DecisionKind
from router.policy.history_rows import Circumstances, brought_up, pooled, row_of, tells
from router.policy.observation import Device, LoopCounters, Observation
from router.policy.traffic import Answered, Watch
from telemetry.history import History, Row
from telemetry.window import Window

_REQUESTS_THAT_TELL = 30  # after these, the mix of prompts is current


class Now(msgspec.Struct, frozen=True):
    """The time on two clocks."""

    unix_s: float
    ms: float  # monotonic


class Change(msgspec.Struct, frozen=True):
    """Durations of the last change to a choice. None: no such change."""

    swap_ms: float | None = None
    deepen_ms: float | None = None


class Breach(msgspec.Struct, frozen=True):
    """A choice left for its breaches. The class of the breaching prompts is known some requests later."""

    choice: Choice
    rate: float
    num_requests: int  # answered by then
    prompts: str  # of a split: its class; "": all prompts


class Reassessor:
    """The policy's state in one router. `serving` is the current choice, also while another one is evaluated.

    With a `split`, each class of prompts has its own choice, and `serving` is the one with the most load.
    """

    def __init__(self, repository: Repository, device: Device, serving: Choice, now: Now):
        self.repository = repository
        self.device = device
        self.serving = serving
        self.split: dict[str, Choice] = {}
        self.shards: tuple[Choice, ...] = ()  # what each shard serves or evaluates; kept current by the loop
        self.cached_tokens = 0.0  # see `Observation`; kept current by the loop
        self.admitted: dict[str, frozenset[Choice]] = {}  # by the last decision: see `classes.admitted`
        self.profiles: dict[str, CandidateProfile] = {}
        self.watch = Watch(repository.loop, now.ms)
        self._since_s = now.unix_s  # when `serving` or the class of most prompts last changed
        self._prompts = ""
        self._tried_since_s = now.unix_s
        self._breach: Breach | None = None
        self._load_failures: dict[Choice, tuple[str, float]] = {}  # (reason, time)
        self._changes: dict[Choice, Change] = {}
        self._versions: dict[Choice, str] = {}
        self._earlier: dict[Choice, tuple[float, Row | None]] = {}  # (window's start, row known then)

    @property
    def trying(self) -> Choice | None:
        return None if self.watch.evaluation is None else self.watch.evaluation.trying

    @property
    def served(self) -> list[Choice]:
        """All choices that serve, also those of a part of the prompts."""
        return list(dict.fromkeys([self.serving, *self.split.values()]))

    def on_answered(self, answer: Answered) -> None:
        self.watch.on_answered(answer, self.serving)

    def since_s(self, choice: Choice) -> float:
        """Unix time from which a choice's windows reflect the current conditions."""
        return self._tried_since_s if choice == self.trying else self._since_s

    @property
    def prompts(self) -> str:
        """Class of most prompts as of the last `learn`."""
        return self._prompts

    def learn(self, history: History, windows: dict[Choice, Window], now: Now) -> None:
        """Take measurements since `since_s` of the served and the evaluated choices."""
        if self._has_other_prompts(now):
            windows = {}  # they mix the old and the new class
        observation = self.observation(history, now)
        for choice, window in windows.items():
            if choice in (*self.served, self.trying) and window.tokens:
                around = self._around(choice, observation)
                if tells(window, around.excluded_classes):
                    before = self._before(history, choice, around.prompts)
                    history.put(pooled(before, row_of(choice, window, around)))
        self._enter_breach(history, now)

    def decide(self, history: History, now: Now) -> Decision:
        self.watch.on_deciding()
        observation = self.observation(history, now)
        self.admitted = admitted(observation)
        return decide(observation)

    def observation(self, history: History, now: Now) -> Observation:
        return Observation(
            repository=self.repository,
            profiles=self.profiles,
            device=self.device,
            demand=self.watch.demand,
            history=tuple(history.rows()),
            serving=self.serving,
            now_s=now.unix_s,
            counters=self.watch.counters(now.ms),
            load_failures=self._fresh_load_failures(now),
            breached=None if self._breach is None else self._breach.choice,
            split=self.split,
            shards=self.shards,
            cached_tokens=self.cached_tokens,
        )

    def took(self, decision: Decision, now: Now) -> None:
        """Note that a decision was carried out, or needed no action."""
        counters, trying = self.watch.counters(now.ms), self.trying
        if counters.is_breached and self._is_replaced_by(decision):
            self._breach = self._noted(counters)
        self.watch.on_decided(decision)
        if self.trying != trying:
            self._tried_since_s = now.unix_s
        if self._is_replaced_by(decision):
            self.now_serves(decision.choice, now, decision.split)

    def now_serves(self, choice: Choice, now: Now, split: Mapping[str, Choice] = {}) -> None:
        """Note that another choice serves, by whoever's decision."""
        self.serving = choice
        self.split = dict(split)
        self._since_s = now.unix_s
        self.watch.on_serving()

    def failed(self, decision: Decision, reason: str, now: Now) -> None:
        """Note that a decision failed; the old choice serves on. It is not retried while history is fresh."""
        new = set(decision.shards).difference(self.served) or {decision.choice}
        self._load_failures |= dict.fromkeys(new, (reason.rstrip("."), now.unix_s))
        if decision.kind is DecisionKind.EVALUATE:
            self.watch.on_trial_failed(decision)
            self._tried_since_s = now.unix_s
        elif set(decision.shards) <= set(self.served) and decision.split:
            self.watch.on_sharing_failed()

    def note_loaded(self, choice: Choice, version: str, is_certified: bool) -> None:
        """Note that a shard has loaded a choice. An invalid certificate stops counting as proof."""
        self._versions[choice] = version
        profile = self.profiles.get(choice.candidate)
        if profile is not None and not is_certified:
            others = {depth: low for depth, low in profile.proven.items() if depth != choice.depth}
            self.profiles[choice.candidate] = msgspec.structs.replace(profile, proven=others)

    def note_change(self, choice: Choice, ms: float) -> None:
        """Note how long a change took; call before `took`."""
        known = self._changes.get(choice, Change())
        is_depth = choice.candidate == self.serving.candidate
        swap_ms, deepen_ms = (known.swap_ms, ms) if is_depth else (ms, known.deepen_ms)
        self._changes[choice] = Change(swap_ms, deepen_ms)

    def _has_other_prompts(self, now: Now) -> bool:
        """True if the class of most prompts has changed since the last call; later measurements count."""
        before, self._prompts = self._prompts, self.watch.demand.prompts
        if self.split or before in ("", self._prompts):
            return False  # in a split each choice has its own prompts
        self._since_s = now.unix_s
        return True

    def _before(self, history: History, choice: Choice, prompts: str) -> Row | None:
        """The row that was known of a choice when its current window began."""
        since = self.since_s(choice)
        known = self._earlier.get(choice)
        if known is None or known[0] != since:
            known = (since, history.get(choice.candidate, choice.depth, prompts))
            self._earlier[choice] = known
        return known[1]

    def _around(self, choice: Choice, observation: Observation) -> Circumstances:
        change = self._changes.get(choice, Change())
        return Circumstances(
            prompts=demand_for(observation, choice).prompts,
            excluded_classes=classes_excluded_by(observation, choice),
            now_s=observation.now_s,
            swap_ms=change.swap_ms,
            deepen_ms=change.deepen_ms,
            version=self._versions.get(choice, ""),
        )

    def _enter_breach(self, history: History, now: Now) -> None:
        """Add a breach to history once the class of the breaching prompts is known."""
        breach, window = self._breach, self.repository.loop.breach_window
        if breach is None or self.watch.num_requests - breach.num_requests < _REQUESTS_THAT_TELL:
            return
        self._breach = None
        row = Row(
            candidate=breach.choice.candidate,
            depth=breach.choice.depth,
            measured_at=int(now.unix_s),
            num_tokens=window,
            breaches=round(breach.rate * window),
            exits={breach.choice.depth: window},
            prompts=breach.prompts or self._prompts,
            version=self._versions.get(breach.choice, ""),
        )
        history.put(brought_up(history.get(*row.key), row))

    def _fresh_load_failures(self, now: Now) -> dict[Choice, str]:
        fresh_s = self.repository.loop.history_fresh_s
        return {
            choice: reason
            for choice, (reason, at) in self._load_failures.items()
            if now.unix_s - at <= fresh_s
        }

    def _is_replaced_by(self, decision: Decision) -> bool:
        serves = (self.serving, self.split)
        return decision.kind is not DecisionKind.EVALUATE and (decision.choice, decision.split) != serves

    def _noted(self, counters: LoopCounters) -> Breach:
        """The breach for which a choice is being left."""
        choice = counters.breaching or self.serving
        of_class = [name for name, served in self.split.items() if served == choice]
        prompts = of_class[0] if len(of_class) == 1 else ""
        return Breach(choice, self.watch.breach_rate, counters.num_requests, prompts)
