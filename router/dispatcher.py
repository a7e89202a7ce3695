"""Requests in, shards beneath: admission on arrival, the one waiting queue, drain, and what /ops asks about.

The dispatcher owns the shards' engines and every request's life from `submit` to its end. It knows no HTTP and
no text; a request that is refused or fails carries its HTTP status in `GenerationFailed`.
"""

from collections.abc import Callable
from pathlib import Path

import msgspec

from router.config import Config
from router.observer import Observer
from router.request import Request, Spec
from router.tokenizer import Detokenizer
from shard.messages import Ready


class ShardState(msgspec.Struct, frozen=True):
    """One row of `/ops/state`."""

    id: int
    state: str  # loading | serving | draining | dead
    model: str
    version: str
    depth: int
    num_layers: int
    running: int
    num_free_blocks: int
    num_blocks: int
    heartbeat_age_ms: float | None  # since the shard was last heard; None: no connection
    num_deaths: int
    reason: str  # of the last death; "" when there was none


class State(msgspec.Struct, frozen=True):
    """What `/ops/state` shows of the dispatcher."""

    waiting: int
    queued_tokens: int
    running: int
    is_draining: bool
    shards: list[ShardState]


class Dispatcher:
    """All shards behind one door. Every method but `start` and `stop` is synchronous and O(1) or nearly so."""

    def __init__(
        self, config: Config, model_path: Path, make_detokenizer: Callable[[list[int]], Detokenizer]
    ): ...

    def add_observer(self, observer: Observer) -> None:
        """Before `start`."""

    async def start(self) -> None:
        """Start every shard; return once one of them serves (the others follow by themselves).

        Raises `ShardFailed` with one sentence for a person when a shard says that it never will serve.
        """

    async def stop(self, drain: bool) -> None:
        """Accept nothing more; with `drain`, let live requests end for up to the configured time; end the shards.

        What has not ended by then fails with a sentence that says so. Idempotent.
        """

    def try_admit(self, num_tokens: int, num_requests: int = 1) -> None:
        """Called on arrival, before tokenising, with an estimate of the prompt tokens of all `num_requests`.

        Raises `GenerationFailed`: 429 "overloaded" with `retry_after_s`. Reserves nothing: `submit` asks again.
        """

    def submit(self, spec: Spec) -> Request:
        """Queue a validated generation. Read `request.events()`, and `abort(request)` in a `finally`.

        Raises `GenerationFailed`: 429 when full or draining, 422 when its deadline has already passed.
        """

    def abort(self, request: Request, message: str = "The request was aborted.") -> None:
        """End a request wherever it is; its blocks are free within two steps. Idempotent; nothing if it has ended.

        A reader of `request.events()` gets `GenerationFailed(message, kind="cancelled", status=499)`.
        """

    @property
    def limits(self) -> Ready | None:
        """What the model can take, from the first shard that became ready; None while loading."""

    @property
    def is_ready(self) -> bool:
        """A shard serves, and new requests are accepted."""

    def state(self) -> State: ...

    def requests(self) -> list[Request]:
        """Live requests in order of arrival, then the last hundred that ended, latest first."""

    def find(self, request_id: int) -> Request | None:
        """One of `requests()`."""

    def drain(self, shard: int | None = None) -> None:
        """Give a shard (or all) nothing new; what runs there goes on. Raises `KeyError` for an unknown shard."""

    def resume(self, shard: int | None = None) -> None:
        """Undo `drain`."""
