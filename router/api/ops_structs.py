"""The bodies of `/ops`."""

import msgspec

from shard.agreement import Report


class ShardRow(msgspec.Struct, frozen=True, kw_only=True):
    id: int
    state: str  # loading | serving | draining | swapping | dead
    model: str
    version: str
    depth: int
    num_layers: int
    exit_mode: str
    num_generations: int  # models that sequences run on
    running: int
    waiting: int  # 0: requests wait in one queue before all shards
    num_free_blocks: int
    num_blocks: int
    heartbeat_age_ms: float | None
    num_deaths: int
    reason: str  # of the last death


class StateReport(msgspec.Struct, frozen=True, kw_only=True):
    deployment: str
    objective: str | None
    shards: list[ShardRow]
    candidates: list[msgspec.Raw]
    pinned: str | None
    redis: str  # ok | lost
    running: int
    waiting: int
    queued_tokens: int
    is_draining: bool
    agreement: Report  # of answers read again at full depth, since the start


class RequestRow(msgspec.Struct, frozen=True, kw_only=True):
    """A request in `/ops/requests`. Its text is not shown."""

    id: int
    label: str  # the client's x-request-id
    status: str  # waiting | running | finished
    outcome: str | None  # a finish reason or an error_type
    shard: int | None
    model: str
    version: str
    num_prompt_tokens: int
    num_computed_tokens: int
    num_generated_tokens: int
    max_new_tokens: int
    priority: int
    num_preemptions: int
    num_shard_deaths: int
    age_ms: float


class Moment(msgspec.Struct, frozen=True):
    """What happened so many milliseconds after the request arrived."""

    at_ms: float
    what: str


class RequestReport(msgspec.Struct, frozen=True):
    request: RequestRow
    timeline: list[Moment]
    mean_exit_layer: float | None
    error: str | None


class Requests(msgspec.Struct, frozen=True):
    requests: list[RequestRow]


class ShardChoice(msgspec.Struct, frozen=True):
    """Which shard; none: all."""

    shard: int | None = None


class AbortRequest(msgspec.Struct, frozen=True):
    request_id: int


class Aborted(msgspec.Struct, frozen=True):
    """`aborted` is false for a request that had ended already."""

    aborted: bool
