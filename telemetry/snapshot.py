"""What one router's shards, queue and loop do at a moment, for readers in other processes.

A router writes one with each flush. It holds no text of prompts or answers, and no labels of clients. Its
fields are those of `/ops/state`.
"""

import msgspec

MAX_REQUESTS = 50  # live ones first, in order of arrival
MAX_MOMENTS = 20  # of a request, the latest
MAX_EXIT_LAYERS = 64  # of a request


class CacheState(msgspec.Struct, frozen=True):
    """A shard's prefix cache: what it holds, and counts since the shard's start."""

    known_blocks: int = 0  # with content that may be found, in use or free
    cached_blocks: int = 0  # of these, the free ones
    queried_tokens: int = 0  # of prompts looked for
    hit_tokens: int = 0  # found: they were not computed again
    evicted_blocks: int = 0  # whose content was given up for other content
    cleared_blocks: int = 0  # whose content was given up on command
    mean_evicted_age_ms: float | None = None  # from their last use, of those evicted; None: none was
    mean_reuse_gap_ms: float | None = None  # from their last use, of free ones found again

    @property
    def hit_share(self) -> float:
        """Share of prompts' tokens that were found; 0 before any was looked for."""
        return self.hit_tokens / self.queried_tokens if self.queried_tokens else 0.0


class ShardView(msgspec.Struct, frozen=True, omit_defaults=True):
    """A shard, as in `/ops/state`."""

    id: int
    state: str  # loading | serving | draining | swapping | dead
    model: str = ""
    version: str = ""
    depth: int = 0
    num_layers: int = 0
    exit_mode: str = ""
    num_models: int = 0  # loaded models: running sequences keep theirs after a swap
    running: int = 0
    num_free_blocks: int = 0
    num_blocks: int = 0
    heartbeat_age_ms: float | None = None  # since the shard was last heard; None: no connection
    num_deaths: int = 0
    reason: str = ""  # of the last death; "" when there was none
    warnings: list[str] = []  # where the exits' certificate does not cover what it serves
    dtype: str = ""  # of weights
    kernels: str = ""  # native | plain | cuda
    swap_phase: str = ""  # of a change under way: prepare, hold, commit, drain or migrate
    exit_thresholds: dict[int, float] = {}  # by exit layer, of requests that give none
    cache: CacheState = CacheState()


class Breaches(msgspec.Struct, frozen=True):
    """A choice's recent tokens under threshold. More than `limit` of `window` make the loop act."""

    choice: str
    breaches: int
    tokens: int
    limit: int
    window: int


class LoopState(msgspec.Struct, frozen=True):
    """The reassessment loop."""

    state: str = "off"  # watching | trying | holding | off
    serving: str | None = None
    trying: str | None = None
    why: str = ""  # reason of the last decision, or for holding still
    num_requests: int = 0  # answered so far
    next_in: int | None = None  # answers until it compares again, if nothing calls for it before
    breaches: list[Breaches] = []


class ThresholdSetting(msgspec.Struct, frozen=True):
    """The exit threshold of requests that give none, and who set it."""

    value: float | None = None  # None: each exit's own
    by: str = ""  # "": nobody since the start
    decision: str = ""  # id


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


class Moment(msgspec.Struct, frozen=True):
    """An event of a request, and its time in milliseconds after arrival.

    `what`: queued, started, first_token, `finished: ` and the outcome; on the way preempted, shard_died or
    model_changed, by which it returned to the queue, then resumed, or moved to another shard or model.
    """

    at_ms: float
    what: str
    shard: int | None = None  # on which it starts, or which it leaves
    model: str | None = None
    depth: int | None = None
    num_generated_tokens: int = 0  # by then


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
    timeline: list[Moment] = []


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
    threshold: ThresholdSetting = ThresholdSetting()
    refusals: dict[str, int] = {}  # failed calls since the start, by error type
    agreement: AgreementView = AgreementView()
    reassessment: LoopState = LoopState()
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
