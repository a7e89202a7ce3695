"""Counts events between two decisions, and gives them as `LoopCounters`.

Knows no clock: times are arguments, in milliseconds of any monotonic clock.
"""

from collections.abc import Mapping

import msgspec

from router.catalog.repository import Choice, Loop
from router.policy.breach import BreachCounter
from router.policy.decision import Decision, DecisionKind
from router.policy.drift import Cusum, Mix
from router.policy.observation import Demand, Evaluation, LoopCounters

_EXITS, _CONFIDENCE = "mean exit layer", "mean confidence"
_MEMORY = 50.0  # requests over which lengths and batch sizes are averaged (exponentially)


class Answered(msgspec.Struct, frozen=True):
    """A completely answered request."""

    choice: Choice | None  # that wrote the answer; None: several did
    prompts: str  # class of the prompt
    num_prompt_tokens: int
    num_tokens: int
    mean_exit_layer: float
    mean_confidence: float | None = None


class Watch:
    """One router's counters. Takes steps, answers and decisions; gives `LoopCounters`."""

    def __init__(self, loop: Loop, now_ms: float):
        self.pinned = ""  # who pinned the choice; "" if nobody
        self.evaluation: Evaluation | None = None
        self._loop = loop
        self._began_ms = now_ms
        self.num_requests = 0  # answered since the start
        self._reassessed_at: int | None = None
        self._swapped_at: list[int] = []
        self._evaluated_ms = 0.0
        self.num_shards = 1  # that serve; limits in tokens or requests apply to each
        self.num_shards_of: Mapping[Choice, int] = {}  # of a split: shards by choice
        self._breaches: dict[Choice, BreachCounter] = {}
        self._mix = Mix()
        self._tests = {name: Cusum(loop.drift_sensitivity) for name in (_EXITS, _CONFIDENCE)}
        self._lengths: tuple[float, float] | None = None
        self._batch_size = 1.0

    def on_step(self, choice: Choice, num_sequences: int, num_tokens: int, num_breaches: int) -> None:
        """Count a step of a served choice: its sequences, its tokens, and its tokens under threshold."""
        self._batch_size += (num_sequences - self._batch_size) / _MEMORY
        counter = self._breaches.get(choice)
        if counter is None:
            counter = self._breaches[choice] = BreachCounter(
                self._loop.breach_window, self._loop.breach_limit
            )
        counter.num_shards = self.num_shards_of.get(choice, self.num_shards)
        counter.add(num_tokens, num_breaches)

    def on_answered(self, answer: Answered, serving: Choice) -> None:
        self.num_requests += 1
        self._mix.add(answer.prompts)
        self._note_lengths(answer.num_prompt_tokens, answer.num_tokens)
        trial = self.evaluation
        if trial is not None and trial.trying == answer.choice:
            self.evaluation = msgspec.structs.replace(trial, num_answered=trial.num_answered + 1)
        if answer.choice == serving:
            self._tests[_EXITS].add(answer.mean_exit_layer)
            if answer.mean_confidence is not None:
                self._tests[_CONFIDENCE].add(answer.mean_confidence)

    def counters(self, now_ms: float) -> LoopCounters:
        return LoopCounters(
            num_requests=self.num_requests,
            reassessed_at=self._reassessed_at,
            swapped_at=tuple(self._swapped_at),
            evaluation=self.evaluation,
            evaluated_ms=self._evaluated_ms,
            elapsed_ms=now_ms - self._began_ms,
            num_shards=self.num_shards,
            is_breached=self.is_breached,
            breaching=self.breaching,
            drift=self._drift,
            pinned=self.pinned,
        )

    @property
    def demand(self) -> Demand:
        if self._lengths is None:
            return Demand()
        return Demand(*self._lengths, self._batch_size, self._mix.shares, self._mix.steady)

    @property
    def is_due(self) -> bool:
        """A decision is due."""
        loop, trial, at = self._loop, self.evaluation, self._reassessed_at
        if trial is not None and trial.num_answered >= loop.evaluation_requests:
            return True
        if at is None:
            return self.num_requests >= loop.evaluation_requests
        return self.is_breached or bool(self._drift) or self.num_requests - at >= loop.reassess_every

    @property
    def is_breached(self) -> bool:
        return self.breaching is not None

    @property
    def breaching(self) -> Choice | None:
        """The served choice whose breach counter exceeds its limit."""
        return next((choice for choice, counter in self._breaches.items() if counter.has_run_over), None)

    @property
    def breaches_by_choice(self) -> dict[Choice, tuple[int, int]]:
        """Recent tokens under threshold, and all recent tokens, of each choice."""
        return {choice: counter.counts for choice, counter in self._breaches.items()}

    @property
    def num_until_due(self) -> int:
        """Answers until choices are compared again, if nothing calls for it before."""
        loop, trial, at = self._loop, self.evaluation, self._reassessed_at
        if trial is not None:
            return max(0, loop.evaluation_requests - trial.num_answered)
        due_at = loop.evaluation_requests if at is None else at + loop.reassess_every
        return max(0, due_at - self.num_requests)

    @property
    def breach_rate(self) -> float:
        """The highest share of breaches among the counters."""
        return max((counter.rate for counter in self._breaches.values()), default=0.0)

    def on_deciding(self) -> None:
        """Mark all events so far as considered."""
        self._mix.mark()

    def on_decided(self, decision: Decision) -> None:
        """Note that a decision was carried out, or needed no action."""
        if decision.kind is DecisionKind.EVALUATE:
            if self.evaluation is None or self.evaluation.trying != decision.choice:
                self.evaluation = Evaluation(decision.choice, 0, decision.waiting)
            return
        if decision.settles:
            self._reassessed_at = self.num_requests
            self.evaluation = None
            self._mix.remember()
            self._learn_anew()
        if decision.is_elective:
            self._swapped_at = [*self._swapped_at, self.num_requests][-self._loop.max_swaps :]

    def on_trial_failed(self, decision: Decision) -> None:
        """Note that the choice to be evaluated could not be loaded: continue with the next."""
        first = decision.waiting[:1]
        self.evaluation = Evaluation(first[0], 0, decision.waiting[1:]) if first else None

    def on_sharing_failed(self) -> None:
        """Note that rearranging a split failed: retry after the usual number of requests."""
        self._reassessed_at = self.num_requests
        self.evaluation = None

    def on_spent(self, ms: float) -> None:
        """Add milliseconds that evaluation has taken from serving."""
        self._evaluated_ms += ms

    def on_serving(self) -> None:
        """Restart counts that belong to a choice: another one serves from here on."""
        self._breaches.clear()
        self._learn_anew()

    @property
    def _drift(self) -> str:
        if self._mix.has_shifted:
            most = max(self._mix.shares.items(), key=lambda share: share[1])
            return f"The mix of prompts has shifted ({most[1]:.0%} are about {most[0]})"
        moved = [name for name, test in self._tests.items() if test.has_shifted]
        return f"The {moved[0]} of tokens is not what it was" if moved else ""

    def _note_lengths(self, num_prompt_tokens: int, num_tokens: int) -> None:
        if self._lengths is None:
            self._lengths = float(num_prompt_tokens), float(num_tokens)
        prompt, answer = self._lengths
        self._lengths = (
            prompt + (num_prompt_tokens - prompt) / _MEMORY,
            answer + (num_tokens - answer) / _MEMORY,
        )

    def _learn_anew(self) -> None:
        for test in self._tests.values():
            test.clear()
