"""The input of a decision. Plain data: decisions know no clock, no Redis and no shard."""

import msgspec

from router.catalog.profile import CandidateProfile
from router.catalog.repository import Choice, Repository
from telemetry.history import Row

MIXED = "mixed"
_MOST = 0.6  # share of the traffic from which it counts as of one class
_KEEP_SHARE = 1 / 3  # hysteresis: a class with own shards counts until below this part of `class_share`


class Device(msgspec.Struct, frozen=True):
    """Resources of one shard."""

    memory_bytes: int  # for weights and KV cache together
    max_batch_size: int = 64
    watts: float | None = None  # power of a busy shard, if stated instead of measured


class Demand(msgspec.Struct, frozen=True):
    """Means of the current requests."""

    prompt_tokens: float = 128.0
    answer_tokens: float = 128.0
    batch_size: float = 1.0  # sequences in a step
    mix: dict[str, float] = {}  # share of requests by class of prompt
    steady_mix: dict[str, float] = {}  # the same over more requests, with less noise; {}: unknown

    def share(self, name: str) -> float:
        """Long-run share of a class."""
        return self.steady_mix.get(name, self.mix.get(name, 0.0))

    @property
    def prompts(self) -> str:
        """Class of most prompts, under which history is kept."""
        name = max(self.mix, key=lambda name: self.mix[name], default="")
        return name if self.mix.get(name, 0.0) >= _MOST else MIXED


class Evaluation(msgspec.Struct, frozen=True):
    """Choices being evaluated on live requests, one after the other."""

    trying: Choice
    num_answered: int = 0  # requests answered so far by the first one
    waiting: tuple[Choice, ...] = ()


class LoopCounters(msgspec.Struct, frozen=True, kw_only=True):
    """The loop's state between two decisions. Requests are counted when answered."""

    num_requests: int = 0  # ever
    reassessed_at: int | None = None  # in requests; None: never
    swapped_at: tuple[int, ...] = ()  # in requests: elective swaps
    evaluation: Evaluation | None = None
    evaluated_ms: float = 0.0  # spent on evaluation so far
    elapsed_ms: float = 0.0  # since the loop began
    num_shards: int = 1
    is_breached: bool = False  # a breach counter exceeds its limit
    breaching: Choice | None = None  # of a split: the breaching choice
    drift: str = ""  # what has shifted, in words; "" if nothing
    pinned: str = ""  # who pinned the choice; "" if nobody


class Observation(msgspec.Struct, frozen=True, kw_only=True):
    """The input of one decision."""

    repository: Repository
    profiles: dict[str, CandidateProfile]  # by candidate
    device: Device
    demand: Demand
    history: tuple[Row, ...]
    serving: Choice
    now_s: float  # Unix time, for the age of history
    counters: LoopCounters = LoopCounters()
    load_failures: dict[Choice, str] = {}  # why a choice could not be loaded recently
    breached: Choice | None = None  # just left for breaches that history does not show yet
    split: dict[str, Choice] = {}  # choice for each class of prompts; {}: `serving` for all
    shards: tuple[Choice, ...] = ()  # the choice that each shard serves or evaluates
    cached_tokens: float = 0.0  # of a shard's prefix cache, those that prompts are likely to ask for

    @property
    def served(self) -> frozenset[Choice]:
        """All choices that serve, also those of a part of the prompts."""
        return frozenset([self.serving, *self.split.values()])

    @property
    def counted(self) -> list[str]:
        """Classes with a large enough share of the traffic to count, the most frequent first."""
        shares, least = self.demand.mix, self.repository.loop.class_share
        bars = {name: least * (_KEEP_SHARE if name in self.split else 1) for name in shares}
        counted = [name for name in shares if shares[name] >= bars[name]]
        return sorted(counted, key=lambda name: (-shares[name], name))

    def row(self, choice: Choice) -> Row | None:
        """The fresh measurement of a choice under current prompts."""
        return self._row(choice, self.demand.prompts)

    def row_of_any_prompts(self, choice: Choice) -> Row | None:
        """The latest fresh measurement of a choice, preferably under current prompts."""
        rows = [row for row in self.history if row.key[:2] == (choice.candidate, choice.depth)]
        fresh = [row for row in rows if self._is_fresh(row)]
        return self.row(choice) or max(fresh, key=lambda row: row.measured_at, default=None)

    def _row(self, choice: Choice, prompts: str) -> Row | None:
        key = (choice.candidate, choice.depth, prompts)
        return next((row for row in self.history if row.key == key and self._is_fresh(row)), None)

    def _is_fresh(self, row: Row) -> bool:
        return self.now_s - row.measured_at <= self.repository.loop.history_fresh_s
