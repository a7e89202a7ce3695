"""The body of `/ops/windows`."""

import msgspec

from shard.quality.agreement import Share


class Percentiles(msgspec.Struct, frozen=True):
    """Of times in milliseconds, within 2%."""

    num: int
    p50: float
    p95: float
    p99: float


class Point(msgspec.Struct, frozen=True, kw_only=True):
    """Sums of one step and the ratios that follow from them. None: not measured in it."""

    at: int  # start of the step, Unix time in seconds
    seconds: float  # of the step that had passed
    tokens: int
    tokens_per_s: float
    tokens_by_exit: dict[int, int]  # by exit layer
    mean_exit_layer: float | None
    requests: int  # answered
    failures: int  # requests that ended without a complete answer after they had started
    ttft_ms: Percentiles | None
    itl_ms: Percentiles | None
    mean_batch: float | None  # sequences in a step of the device
    mean_waiting: float | None  # requests in a router's queue, over the same steps
    kv_use: float | None  # greatest share of a shard's KV blocks in use
    agreement: Share | None  # of answers scored at full depth
    scored_answers: int
    breaches: int  # tokens that left under their threshold
    breach_rate: float
    drafted: int  # tokens that the model verified
    accepted: int  # those that it says too
    draft_saved_s: float  # time of shards, estimated
    joules: float
    joules_per_token: float | None
    busy_s: float  # time of shards in steps


class Series(msgspec.Struct, frozen=True, kw_only=True):
    """By candidate: `candidate`, `depth`; by shard: `router`, `shard`; all, or all others: neither."""

    name: str
    candidate: str | None = None
    depth: int | None = None
    router: str | None = None
    shard: int | None = None
    points: list[Point]  # steps in which nothing happened are left out


class Windows(msgspec.Struct, frozen=True, kw_only=True):
    since: float  # Unix time in seconds
    until: float
    step: int  # seconds
    by: str  # candidate | shard | all
    kept_s: int  # how long steps of this length are kept, by shard or by candidate
    redis: str  # ok | lost: only what this router has not written yet
    series: list[Series]
