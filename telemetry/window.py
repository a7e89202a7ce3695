"""Mergeable windows of measurements of a shard that serves a candidate. Pure.

A window holds only sums, counts and sketches; ratios are computed on demand. So merged windows of any
seconds, shards and routers equal one window over all of them.
"""

import math
from collections.abc import Iterable

import msgspec

from telemetry.cost import CostSums
from telemetry.sketch import Sketch


class Answers(msgspec.Struct, omit_defaults=True):
    """Sums over answers scored at full depth, for the interval of agreement and for perplexity.

    The interval's unit is the answer, as its tokens are correlated; so sums of squares are kept too.
    """

    num_answers: int = 0
    tokens: int = 0
    agreeing: int = 0
    tokens_squared: int = 0
    agreeing_squared: int = 0
    agreeing_by_tokens: int = 0
    logprob: float = 0.0  # of all tokens, under the full model
    num_bytes: int = 0  # of the answers' text; 0: unknown

    def add(self, tokens: int, agreeing: int, logprob: float, num_bytes: int = 0) -> None:
        """Add one answer."""
        self.merge(
            Answers(
                1, tokens, agreeing, tokens**2, agreeing**2, agreeing * tokens, logprob, num_bytes
            )
        )  # fmt: skip

    def merge(self, other: "Answers") -> None:
        _add_numbers(self, other)

    @property
    def perplexity(self) -> float | None:
        return math.exp(min(700.0, -self.logprob / self.tokens)) if self.tokens else None

    @property
    def bits_per_byte(self) -> float | None:
        """Bits per byte: comparable between vocabularies, unlike perplexity."""
        return -self.logprob / math.log(2) / self.num_bytes if self.num_bytes else None


class ClassUse(msgspec.Struct, array_like=True):
    """Sums over requests of one class of prompts."""

    requests: int = 0
    tokens: int = 0  # drawn, not forced by a grammar
    layers: int = 0  # sum of the tokens' exit layers

    def merge(self, other: "ClassUse") -> None:
        _add_numbers(self, other)

    @property
    def mean_exit_layer(self) -> float | None:
        return self.layers / self.tokens if self.tokens else None


class Window(msgspec.Struct, omit_defaults=True):
    """Sums from `start` to `end` (Unix time in seconds). Merging an empty window changes nothing."""

    start: float = math.inf
    end: float = -math.inf
    num_steps: int = 0
    step_ms: float = 0.0
    idle_ms: float = 0.0  # between steps, while there was work
    batched: int = 0  # sum of sequences over steps
    waiting: int = 0  # sum of the requests in the router's queue over steps
    computed_tokens: int = 0
    tokens_by_exit: dict[int, int] = {}  # tokens generated, by exit layer
    confidence_sum: float = 0.0
    num_confident: int = 0  # number of tokens in that sum
    breaches: int = 0  # tokens that left under their threshold
    drafted: int = 0  # tokens, each a row of a pass
    accepted: int = 0
    draft_saved_ms: float = 0.0  # estimated
    most_blocks: int = 0  # of KV cache
    fewest_free_blocks: int | None = None
    requests: int = 0  # answered
    failures: int = 0
    ttft_ms: Sketch = msgspec.field(default_factory=Sketch)
    itl_ms: Sketch = msgspec.field(default_factory=Sketch)
    answers: Answers = msgspec.field(default_factory=Answers)
    joules: float = 0.0
    metered_tokens: int = 0  # generated while joules were counted
    classes: dict[str, ClassUse] = {}
    answers_of: dict[str, Answers] = {}  # `answers` by class of prompt
    cost: CostSums = msgspec.field(default_factory=CostSums)

    def merge(self, other: "Window") -> None:
        """Add the other's sums, of any time and shard."""
        self.start = min(self.start, other.start)
        self.end = max(self.end, other.end)
        _add_numbers(self, other, _SUMS)
        add_counts(self.tokens_by_exit, other.tokens_by_exit)
        self.most_blocks = max(self.most_blocks, other.most_blocks)
        free = [count for count in (self.fewest_free_blocks, other.fewest_free_blocks) if count is not None]
        self.fewest_free_blocks = min(free, default=None)
        self.ttft_ms.merge(other.ttft_ms)
        self.itl_ms.merge(other.itl_ms)
        self.answers.merge(other.answers)
        self.cost.merge(other.cost)
        for name, answers in other.answers_of.items():
            self.answers_of.setdefault(name, Answers()).merge(answers)
        for name, use in other.classes.items():
            self.classes.setdefault(name, ClassUse()).merge(use)

    def add_answer(
        self, prompts: str, tokens: int, agreeing: int, logprob: float, num_bytes: int = 0
    ) -> None:
        """Add an answer scored at full depth, to a prompt of a class."""
        for answers in (self.answers, self.answers_of.setdefault(prompts, Answers())):
            answers.add(tokens, agreeing, logprob, num_bytes)

    @property
    def tokens(self) -> int:
        """Tokens generated."""
        return sum(self.tokens_by_exit.values())

    @property
    def throughput(self) -> float | None:
        """Generated tokens per second of a shard's busy time."""
        worked_s = (self.step_ms + self.idle_ms) / 1000
        return self.tokens / worked_s if worked_s else None

    @property
    def mean_confidence(self) -> float | None:
        return self.confidence_sum / self.num_confident if self.num_confident else None

    @property
    def breach_rate(self) -> float:
        """Share of generated tokens that left under their threshold."""
        return self.breaches / max(1, self.tokens)

    @property
    def joules_per_token(self) -> float | None:
        return self.joules / self.metered_tokens if self.metered_tokens else None


class Record(msgspec.Struct, frozen=True):
    """A window with its shard, candidate and depth."""

    shard: int
    candidate: str
    depth: int
    window: Window
    router: str = ""  # that runs the shard

    @property
    def key(self) -> tuple[str, int]:
        return self.candidate, self.depth


def add_counts(counts: dict[int, int], more: dict[int, int]) -> None:
    for key, count in more.items():
        counts[key] = counts.get(key, 0) + count


_SUMS = (
    "num_steps", "step_ms", "idle_ms", "batched", "waiting", "computed_tokens", "confidence_sum",
    "num_confident", "breaches", "drafted", "accepted", "draft_saved_ms", "requests", "failures", "joules",
    "metered_tokens",
)  # fmt: skip


def _add_numbers(to: msgspec.Struct, other: msgspec.Struct, names: Iterable[str] | None = None) -> None:
    for name in to.__struct_fields__ if names is None else names:
        setattr(to, name, getattr(to, name) + getattr(other, name))
