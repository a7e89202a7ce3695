"""Requests in, shards beneath: admission on arrival, the one waiting queue, drain, and what /ops asks about.

The dispatcher owns the shards' engines and every request's life from `submit` to its end. It knows no HTTP
and no text; a request that is refused or fails carries its HTTP status in `GenerationFailed`.
"""

import asyncio
import contextlib
import logging
import math
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import msgspec

from router.catalog.repository import Choice
from router.catalog.served_model import ServedModel, Target
from router.fleet.backoff import Backoff
from router.fleet.balancer import Balancer
from router.fleet.client import ShardDied
from router.fleet.engine import Engine
from router.fleet.launcher import Launcher, launcher_of
from router.fleet.live_requests import RequestRegistry
from router.fleet.rollout import roll_out
from router.fleet.swap import SwapError, SwapOptions, SwapRefused, SwapResult
from router.scheduling.observer import Observer
from router.scheduling.request import GenerationFailed, Request, Spec, Status
from router.settings.config import Config
from shard.messages import Ready, ShardConfig
from shard.quality.agreement import Report
from telemetry import tasks

log = logging.getLogger(__name__)

_MAX_RETRY_S = 60


class ShardState(msgspec.Struct, frozen=True):
    """One row of `/ops/state`."""

    id: int
    state: str  # loading | serving | draining | swapping | dead
    model: str
    version: str
    depth: int
    num_layers: int
    exit_mode: str
    num_generations: int  # models that sequences run on: those that run keep theirs when it is changed
    running: int
    num_free_blocks: int
    num_blocks: int
    heartbeat_age_ms: float | None  # since the shard was last heard; None: no connection
    num_deaths: int
    reason: str  # of the last death; "" when there was none
    warnings: list[str] = []  # where it serves beyond what was certified of its exits
    dtype: str = ""  # of weights and KV
    compute_dtype: str = ""  # of activations and products
    kernels: str = ""  # native | plain | cuda
    dtype_reason: str = ""  # why these types, and what they cost
    waiting: int = 0  # requests wait in one queue before all shards


class State(msgspec.Struct, frozen=True):
    """What `/ops/state` shows of the dispatcher."""

    waiting: int
    queued_tokens: int
    running: int
    is_draining: bool
    shards: list[ShardState]
    agreement: Report = Report()
    max_running_tokens: int = 0  # that running requests may come to, prompts and answers


class Dispatcher:
    """All shards behind one door. All but `start` and `stop` is synchronous and quick."""

    def __init__(
        self,
        config: Config,
        target: Target,
        max_total_tokens: int | None = None,
        launch: Callable[[Config, int], Launcher] = launcher_of,
    ):
        """Every shard starts with `target`. What may serve later takes sequences of `max_total_tokens`."""
        self.exit_threshold: float | None = None  # in place of the exits' own, where a request has none
        self._config = config
        self._target = target
        self._max_total_tokens = max_total_tokens
        self._launch = launch
        self._registry = RequestRegistry()
        self._balancer = Balancer(self._registry, config.score_rate)
        self.engines: list[Engine] = []
        self._tasks: list[asyncio.Task[None]] = []
        self._num_requests = 0
        self._is_closed = False

    def add_observer(self, observer: Observer) -> None:
        """Before `start`."""
        self._registry.add_observer(observer)

    async def start(self) -> None:
        """Start every shard; return once one of them serves (the others follow by themselves).

        Raises `ShardDied` with one sentence for a person when a shard says that it never will serve, and
        `OSError` when the secret of shards on other hosts cannot be read.
        """
        for shard in range(self._config.num_replicas):
            target = msgspec.structs.replace(self._target, config=self._shard_config(shard))
            self.engines.append(Engine(shard, target, self._launch(self._config, shard), self._balancer))
        self._balancer.shards += self.engines
        self._tasks = [tasks.begin(self._keep(engine), f"Shard {engine.shard}") for engine in self.engines]
        serving = asyncio.create_task(self._balancer.serving.wait())
        try:
            done, _ = await asyncio.wait([serving, *self._tasks], return_when=asyncio.FIRST_COMPLETED)
            for engine, task in zip(self.engines, self._tasks, strict=True):
                if task in done and engine.last_death is not None:
                    raise engine.last_death
        finally:
            serving.cancel()

    async def stop(self, drain: bool) -> None:
        """Accept nothing more; with `drain`, give live requests the configured time to end; end the shards.

        What has not ended by then fails with a sentence that says so. A shard that dies meanwhile is not
        started again. Idempotent.
        """
        self._is_closed = True
        self._balancer.score_queue.close()
        for engine in self.engines:
            engine.retire()
            engine.end_swap(SwapError("The server is shutting down."))
        log.info("Stopping: %d requests may end, and no shard is started.", len(self._registry.live))
        if drain and not self._balancer.is_hopeless:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._config.shutdown_timeout_ms / 1000):
                    await self._registry.is_empty.wait()
        now = asyncio.get_running_loop().time()
        for request in list(self._registry.live.values()):
            error = "The server was shut down before the answer was complete."
            self._registry.fail(request, GenerationFailed(error, "incomplete_generation", 500), now)
        await tasks.cancel(*self._tasks)

    @property
    def max_queued_tokens(self) -> int:
        """Unless configured, as many tokens as the KV caches hold: about one turn-over of what runs."""
        if self._config.max_queued_tokens is not None:
            return self._config.max_queued_tokens
        block_size = self._target.config.block_tokens
        return sum(engine.num_blocks * block_size for engine in self.engines) or sys.maxsize

    @property
    def max_queued_requests(self) -> int:
        """As many as have a block each in the place of so many tokens."""
        return max(1, self.max_queued_tokens // self._target.config.block_tokens)

    def try_admit(self, num_tokens: int, num_requests: int = 1, max_requests: int | None = None) -> None:
        """Called on arrival, before tokenising, with an estimate of the prompt tokens of all `num_requests`.

        Raises `GenerationFailed`: 429 "overloaded" with `retry_after_s`, 424 when no shard can be brought up.
        Reserves nothing: `submit` asks again.
        """
        queue = self._balancer.queue
        if self._is_closed:
            raise self._overloaded("The server is shutting down.")
        if self.engines and all(engine.is_draining for engine in self.engines):
            raise self._overloaded("The server is being drained.")
        if self.engines and self._balancer.is_hopeless:
            raise GenerationFailed("No shard can serve; the server's log says why.")
        max_requests = self._config.max_concurrent_requests or max_requests
        if max_requests is not None and len(self._registry.live) + num_requests > max_requests:
            raise self._overloaded(f"The server is busy: it takes {max_requests} requests at a time.")
        if queue and queue.num_tokens + num_tokens > self.max_queued_tokens:
            limit = self.max_queued_tokens
            raise self._overloaded(f"The server is busy: at most {limit} tokens may wait in its queue.")
        if queue and len(queue) + num_requests > self.max_queued_requests:
            limit = self.max_queued_requests
            raise self._overloaded(f"The server is busy: at most {limit} requests may wait in its queue.")

    def submit(self, spec: Spec) -> Request:
        """Queue a validated request. Read `request.take()`, and `abort(request)` in a `finally`.

        Raises `GenerationFailed`: as `try_admit`, and 422 when its deadline has already passed.
        """
        now = asyncio.get_running_loop().time()
        self.try_admit(len(spec.prompt_token_ids))
        if spec.exit_threshold is None and self.exit_threshold is not None:
            spec = msgspec.structs.replace(spec, exit_threshold=self.exit_threshold)
        if spec.deadline_s is not None and spec.deadline_s <= now:
            raise GenerationFailed("The deadline of the request has already passed.", "validation", 422)
        self._num_requests += 1
        request = Request(self._num_requests, spec, now)
        self._registry.enter(request)
        self._balancer.add(request)
        return request

    def abort(self, request: Request, message: str = "The request was aborted.") -> None:
        """End a request wherever it is, if it has not ended; its blocks are free within two steps.

        A reader of `request.take()` gets `GenerationFailed(message, kind="cancelled", status=499)`.
        """
        if request.status is Status.FINISHED:
            return
        if not self._balancer.queue.remove(request) and request.shard is not None:
            self.engines[request.shard].drop(request)
        now = asyncio.get_running_loop().time()
        self._registry.fail(request, GenerationFailed(message, "cancelled", 499), now)

    def check_swappable(self, shard: int | None = None) -> frozenset[int]:
        """The shard, or of all those that there is hope for. `KeyError`: no such shard.

        Raises `SwapRefused` when one of them is busy with a swap or does not serve.
        """
        if self._is_closed:
            raise SwapRefused("The server is shutting down.")
        chosen = self._chosen(shard)
        engines = [engine for engine in chosen if shard is not None or not engine.is_hopeless]
        for engine in engines:
            engine.check_swappable()
        return frozenset(engine.shard for engine in engines)

    async def swap(self, targets: Mapping[int, Target], options: SwapOptions) -> list[SwapResult]:
        """Change models or depths of shards: all or none. Raises as `check_swappable` and `roll_out`."""
        for shard in targets:
            self.check_swappable(shard)
        return await roll_out(self.engines, targets, options)

    def targets(self, shard: int | None = None) -> list[tuple[Target, Target | None]]:
        """What each shard serves, and what it served before. `KeyError`: no such shard."""
        return [(engine.target, engine.before) for engine in self._chosen(shard)]

    @property
    def current(self) -> ServedModel | None:
        """What a request that arrives now most likely begins on; None while loading."""
        ready = [engine for engine in self.engines if engine.served_model is not None]
        chosen = next((engine for engine in ready if engine.scheduler is not None), next(iter(ready), None))
        return None if chosen is None else chosen.served_model

    @property
    def limits(self) -> Ready | None:
        """What the current model can take; None while loading."""
        return None if self.current is None else self.current.ready

    @property
    def max_total_tokens(self) -> int:
        """Longest prompt and answer that every model takes which may serve."""
        lengths = [engine.ready.max_total_tokens for engine in self.engines if engine.ready is not None]
        return min([*lengths, self._max_total_tokens or sys.maxsize])

    @property
    def supports_exact(self) -> bool:
        """A shard has all layers of its model."""
        return any(
            engine.served_model is not None and engine.served_model.is_whole for engine in self.engines
        )

    @property
    def is_ready(self) -> bool:
        """A shard serves, and new requests are accepted."""
        serving = (engine.scheduler is not None and not engine.is_draining for engine in self.engines)
        return not self._is_closed and any(serving)

    def state(self) -> State:
        """As of now."""
        queue = self._balancer.queue
        shards = [_state_of(engine) for engine in self.engines]
        running = sum(shard.running for shard in shards)
        agreement = self._balancer.agreement.report()
        most = sum(
            request.num_prompt_tokens + request.max_new_tokens
            for request in self._registry.live.values()
            if request.status is Status.RUNNING
        )
        return State(len(queue), queue.num_tokens, running, self._is_closed, shards, agreement, most)

    def requests(self) -> list[Request]:
        """Live requests in order of arrival, then the last hundred that ended, latest first."""
        return [*self._registry.live.values(), *self._registry.ended]

    def find(self, request_id: int) -> Request | None:
        """One of `requests()`."""
        return self._registry.find(request_id)

    def route(self, admitted: Mapping[str, frozenset[Choice]]) -> None:
        """Have prompts about these begin on shards that serve one of these, while there is one that does."""
        self._balancer.route(admitted)

    def drain(self, shard: int | None = None) -> None:
        """Give a shard (or all) nothing new; what has begun goes on. `KeyError`: no such shard."""
        for engine in self._chosen(shard):
            engine.drain()

    def resume(self, shard: int | None = None) -> None:
        """Undo `drain`."""
        for engine in self._chosen(shard):
            engine.resume()

    async def _keep(self, engine: Engine) -> None:
        """Run an engine for as long as the server lives: one that fails is begun again."""
        backoff = Backoff()
        while True:
            began = asyncio.get_running_loop().time()
            try:
                await engine.run()
                return
            except ShardDied as death:
                if self._balancer.serving.is_set():  # else `start` raises it
                    log.error("Shard %d is not started again: %s", engine.shard, death)
                return
            except Exception as error:
                log.exception("The engine of shard %d failed; it is begun again.", engine.shard)
                engine.reset(str(error) or type(error).__name__)
            await asyncio.sleep(backoff.pause_s(asyncio.get_running_loop().time() - began))

    def _overloaded(self, message: str) -> GenerationFailed:
        """A refusal that says when a place may be free: when as many have ended as wait, and one more."""
        num_waiting = len(self._balancer.queue)
        num_running = max(1, len(self._registry.live) - num_waiting)
        wait_s = self._registry.mean_service_s * (num_waiting + 1) / num_running
        return GenerationFailed(message, "overloaded", 429, min(_MAX_RETRY_S, max(1, math.ceil(wait_s))))

    def _shard_config(self, shard: int) -> ShardConfig:
        """As shard 0 is asked to be, on its own device."""
        config = self._target.config
        device = self._config.shard_config(Path(config.model), shard).device
        return msgspec.structs.replace(config, device=device)

    def _chosen(self, shard: int | None) -> list[Engine]:
        if shard is None:
            return self.engines
        if not 0 <= shard < len(self.engines):
            raise KeyError(shard)
        return [self.engines[shard]]


def _state_of(engine: Engine) -> ShardState:
    ready, scheduler = engine.ready, engine.scheduler
    now = asyncio.get_running_loop().time()
    return ShardState(
        id=engine.shard,
        state=engine.state,
        model=engine.target.name if ready else "",
        version=ready.version if ready else "",
        depth=ready.depth if ready else 0,
        num_layers=ready.num_layers if ready else 0,
        exit_mode=engine.target.config.exit_mode,
        num_generations=scheduler.num_generations if scheduler else 0,
        running=scheduler.num_running if scheduler else 0,
        num_free_blocks=scheduler.num_free_blocks if scheduler else 0,
        num_blocks=scheduler.num_blocks if scheduler else ready.num_blocks if ready else 0,
        heartbeat_age_ms=None if engine.last_heard is None else 1000 * (now - engine.last_heard),
        num_deaths=engine.num_deaths,
        reason=engine.last_death.reason if engine.last_death else "",
        warnings=ready.warnings if ready else [],
        dtype=ready.dtype if ready else "",
        compute_dtype=ready.compute_dtype if ready else "",
        kernels=ready.kernels if ready else "",
        dtype_reason=ready.dtype_reason if ready else "",
    )
