"""What one router's shards, queue and loop do at a moment, for readers in other processes.

A router writes one with each flush. It holds no text of prompts or answers, and no labels of clients. Its
fields are those of `/ops/state`.
"""

import msgspec

MAX_REQUESTS = 50  # live ones first, in order of arrival
MAX_MOMENTS = 20  # of a request, the latest
MAX_EXIT_LAYERS = 64  # of a request


class CacheView(msgspec.Struct, frozen=True, omit_defaults=True):
    """A shard's prefix cache, as in `/ops/state`."""

    known_blocks: int = 0
    cached_blocks: int = 0
    queried_tokens: int = 0
    hit_tokens: int = 0
    evicted_blocks: int = 0
    cleared_blocks: int = 0
    mean_evicted_age_ms: float | None = None
    mean_reuse_gap_ms: float | None = None


class ShardView(msgspec.Struct, frozen=True, omit_defaults=True):
    """A shard, as in `/ops/state`."""

    id: int
    state: str
    model: str = ""
    version: str = ""
    depth: int = 0
    num_layers: int = 0
    exit_mode: str = ""
    num_models: int = 0
    running: int = 0
    num_free_blocks: int = 0
    num_blocks: int = 0
    heartbeat_age_ms: float | None = None
    num_deaths: int = 0
    reason: str = ""
    warnings: list[str] = []
    dtype: str = ""
    kernels: str = ""
    swap_phase: str = ""
    exit_thresholds: dict[int, float] = {}
    cache: CacheView = CacheView()


class BreachesView(msgspec.Struct, frozen=True):
    """A choice's recent tokens under threshold. More than `limit` of `window` make the loop act."""

    choice: str
    breaches: int
    tokens: int
    limit: int
    window: int


class LoopView(msgspec.Struct, frozen=True):
    """The reassessment loop."""

    state: str = "off"
    serving: str | None = None
    trying: str | None = None
    why: str = ""
    num_requests: int = 0
    next_in: int | None = None
    breaches: list[BreachesView] = []


class ThresholdView(msgspec.Struct, frozen=True):
    """The exit threshold of requests that give none, and who set it."""

    value: float | None = None  # None: each exit's own
    by: str = ""
    decision: str = ""


class ShareView(msgspec.Struct, frozen=True):
    """Agreement with full depth over some tokens, with its 95% interval."""

    tokens: int
    agreeing: int
    agreement: float
    low: float
    high: float


class AgreementView(msgspec.Struct, frozen=True):
    """Agreement of answers scored since the router's start; None without any."""

    sequences: int = 0
    overall: ShareView | None = None


class CandidateView(msgspec.Struct, frozen=True):
    """A candidate at a depth that may be served."""

    candidate: str
    depth: int
    num_layers: int


class MomentView(msgspec.Struct, frozen=True, omit_defaults=True):
    """An event of a request, and its time in milliseconds after arrival, as in `/ops/requests/ID`."""

    at_ms: float
    what: str
    shard: int | None = None
    model: str | None = None
    depth: int | None = None
    num_generated_tokens: int = 0


class RequestView(msgspec.Struct, frozen=True, omit_defaults=True):
    """A request, without its label."""

    id: int
    status: str
    outcome: str | None = None
    shard: int | None = None
    model: str = ""
    version: str = ""
    num_prompt_tokens: int = 0
    num_generated_tokens: int = 0
    max_new_tokens: int = 0
    num_preemptions: int = 0
    num_shard_deaths: int = 0
    age_ms: float = 0.0
    mean_exit_layer: float | None = None
    exit_layers: list[int] = []  # of the latest tokens; 0: a grammar forced it
    timeline: list[MomentView] = []


class Snapshot(msgspec.Struct, frozen=True, kw_only=True):
    """One router at a moment."""

    router: str
    at: float  # Unix time in seconds, by the router's clock
    objective: str | None = None
    floor: float | None = None  # of agreement
    waiting: int = 0
    queued_tokens: int = 0
    running: int = 0
    held: int = 0
    is_draining: bool = False
    pinned: str | None = None
    threshold: ThresholdView = ThresholdView()
    refusals: dict[str, int] = {}  # failed calls since the start, by error type
    agreement: AgreementView = AgreementView()
    reassessment: LoopView = LoopView()
    candidates: list[CandidateView] = []
    shards: list[ShardView] = []
    requests: list[RequestView] = []


def encode(snapshot: Snapshot) -> bytes:
    return msgspec.msgpack.encode(snapshot)


def decode(data: bytes) -> Snapshot | None:
    """A snapshot of Redis; None for another version's format."""
    try:
        return msgspec.msgpack.decode(data, type=Snapshot)
    except msgspec.MsgspecError:
        return None
