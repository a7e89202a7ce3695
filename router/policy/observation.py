"""All that a decision may look at. Plain data: whoever decides knows no clock, no Redis and no shard."""

import msgspec

from router.catalog.profile import CandidateProfile
from router.catalog.repository import Choice, Repository
from telemetry.history import Row

MIXED = "mixed"
_MOST = 0.6  # share of the traffic from which on it is of one kind
_KEEP_SHARE = 1 / 3  # a class with shards of its own counts until it is so much rarer, or noise would decide


class Device(msgspec.Struct, frozen=True):
    """What one shard has."""

    memory_bytes: int  # for weights and KV cache together
    max_batch_size: int = 64
    watts: float | None = None  # power of a busy one, where that is given and not measured


class Demand(msgspec.Struct, frozen=True):
    """What clients ask for at present, by its means."""

    prompt_tokens: float = 128.0
    answer_tokens: float = 128.0
    batch_size: float = 1.0  # sequences in a step
    mix: dict[str, float] = {}  # share of requests by what their prompts are about
    steady_mix: dict[str, float] = {}  # the same over more requests, with less noise; {}: not known

    def share(self, name: str) -> float:
        """Of a class of prompts in the long run."""
        return self.steady_mix.get(name, self.mix.get(name, 0.0))

    @property
    def prompts(self) -> str:
        """What most prompts are about: the name under which history is kept."""
        name = max(self.mix, key=lambda name: self.mix[name], default="")
        return name if self.mix.get(name, 0.0) >= _MOST else MIXED


class Evaluation(msgspec.Struct, frozen=True):
    """Candidates being tried on live requests, one after the other."""

    trying: Choice
    num_answered: int = 0  # requests that it has answered so far
    waiting: tuple[Choice, ...] = ()


class LoopCounters(msgspec.Struct, frozen=True, kw_only=True):
    """Where the loop stands: what it remembers between two decisions. Requests are counted as answered."""

    num_requests: int = 0  # ever
    reassessed_at: int | None = None  # in requests; None: never
    swapped_at: tuple[int, ...] = ()  # in requests, each swap that might as well not have been
    evaluation: Evaluation | None = None
    evaluated_ms: float = 0.0  # spent on evaluation so far
    elapsed_ms: float = 0.0  # since the loop began
    num_shards: int = 1
    is_breached: bool = False  # the counter of tokens under threshold has run over
    breaching: Choice | None = None  # whose tokens they are, of a split
    drift: str = ""  # what has shifted, in words; "": nothing
    pinned: str = ""  # who has pinned what serves; "": nobody


class Observation(msgspec.Struct, frozen=True, kw_only=True):
    """One moment, as a decision sees it."""

    repository: Repository
    profiles: dict[str, CandidateProfile]  # by candidate
    device: Device
    demand: Demand
    history: tuple[Row, ...]
    serving: Choice
    now_s: float  # Unix time, for the age of history
    counters: LoopCounters = LoopCounters()
    load_failures: dict[Choice, str] = {}  # why a choice could not be loaded of late
    breached: Choice | None = None  # left for its breaches a moment ago, of which history does not know yet
    split: dict[str, Choice] = {}  # what prompts of each class are served by; {}: all by `serving`
    shards: tuple[Choice, ...] = ()  # what each shard serves or tries, in their order

    @property
    def served(self) -> frozenset[Choice]:
        """What serves, be it a part of the prompts."""
        return frozenset([self.serving, *self.split.values()])

    @property
    def counted(self) -> list[str]:
        """Classes of prompts that count in the traffic, the most frequent first."""
        shares, least = self.demand.mix, self.repository.loop.class_share
        bars = {name: least * (_KEEP_SHARE if name in self.split else 1) for name in shares}
        counted = [name for name in shares if shares[name] >= bars[name]]
        return sorted(counted, key=lambda name: (-shares[name], name))

    def row(self, choice: Choice) -> Row | None:
        """What was measured of a choice under prompts like those of now, if it is fresh."""
        return self._row(choice, self.demand.prompts)

    def row_of_any_prompts(self, choice: Choice) -> Row | None:
        """The latest fresh measurement of a choice, under prompts like those of now if there is one."""
        rows = [row for row in self.history if row.key[:2] == (choice.candidate, choice.depth)]
        fresh = [row for row in rows if self._is_fresh(row)]
        return self.row(choice) or max(fresh, key=lambda row: row.measured_at, default=None)

    def _row(self, choice: Choice, prompts: str) -> Row | None:
        key = (choice.candidate, choice.depth, prompts)
        return next((row for row in self.history if row.key == key and self._is_fresh(row)), None)

    def _is_fresh(self, row: Row) -> bool:
        return self.now_s - row.measured_at <= self.repository.loop.history_fresh_s
