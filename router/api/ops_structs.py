"""The bodies of `/ops`."""

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from router.fleet.dispatcher import State
from telemetry.audit import Decision
from telemetry.snapshot import LoopState, Moment, ThresholdSetting


class CandidateRow(msgspec.Struct, frozen=True, kw_only=True):
    """A candidate at a depth that may be served, and its measurements."""

    candidate: str
    depth: int
    num_layers: int
    measured: list[dict[str, Any]]  # rows of the history, one for each kind of prompts


class StateReport(State, frozen=True, kw_only=True):
    deployment: str
    objective: str | None
    candidates: list[CandidateRow]
    pinned: str | None
    threshold: ThresholdSetting
    floor: float  # least agreement with full depth that may serve
    refusals: dict[str, int]  # failed calls since the start, by error type
    redis: str  # ok | lost
    reassessment: LoopState


class SwapRequest(msgspec.Struct, frozen=True):
    candidate: Annotated[str, Meta(description="One of those in /ops/state.")]
    depth: Annotated[int | None, Meta(description="Layers. Default: the most that it has.")] = None
    shard: Annotated[int | None, Meta(description="Default: all.")] = None
    inflight: Annotated[
        Literal["finish", "migrate"] | None,
        Meta(description="What runs ends on the old model, or goes on with the new one."),
    ] = None


class PinRequest(msgspec.Struct, frozen=True):
    candidate: str
    depth: int | None = None


class ThresholdRequest(msgspec.Struct, frozen=True):
    """Exit threshold (a confidence) of future requests; null: each exit's own."""

    value: Annotated[float, Meta(ge=0, le=1)] | None
    exit_layer: int | None = None


class Accepted(msgspec.Struct, frozen=True):
    """A command was accepted. Its progress can be read at `/ops/decisions/ID`."""

    decision_id: str


class Decisions(msgspec.Struct, frozen=True):
    decisions: list[Decision]


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


class RequestReport(msgspec.Struct, frozen=True):
    """The latest 64 moves from shard to shard, and the latest 2048 tokens' exit layers."""

    request: RequestRow
    timeline: list[Moment]
    mean_exit_layer: float | None
    error: str | None
    exit_layers: list[int]  # by token; 0: a grammar forced it
    exit_layers_from: int  # the token that the first of them belongs to


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


class CacheCleared(msgspec.Struct, frozen=True):
    """`tokens` could be found in prefix caches, as of the shards' last reports."""

    tokens: int
