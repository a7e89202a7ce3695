"""Takes requests in and owns the shards: admission on arrival, the waiting queue, drain, state for /ops.

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
from telemetry.snapshot import CacheState, ShardView

log = logging.getLogger(__name__)

_MAX_RETRY_S = 60


class ShardState(ShardView, frozen=True, omit_defaults=False):
    """One row of `/ops/state`."""

    compute_dtype: str = ""  # of activations and products
    weights: str = ""  # format of matrices: none | int8 | int4 | gguf
    kv_dtype: str = ""  # of the KV cache
    dtype_reason: str = ""  # why these types, and what they cost
    waiting: int = 0  # always: requests wait in one queue that all shards share


class State(msgspec.Struct, frozen=True, kw_only=True):
    """What `/ops/state` shows of the dispatcher."""

    waiting: int
    queued_tokens: int
    running: int
    is_draining: bool
    shards: list[ShardState]
    held: int = 0  # of those that wait, while changes keep every serving shard from beginning any
    agreement: Report = Report()  # of answers scored at full depth since the start


class Dispatcher:
    """All shards behind one interface. Synchronous and quick except `start`, `stop` and swaps."""

    def __init__(
        self,
        config: Config,
        target: Target,
        max_total_tokens: int | None = None,
        launch: Callable[[Config, int], Launcher] = launcher_of,
    ):
        """Every shard starts with `target`. All models that may serve accept `max_total_tokens`."""
        self.exit_threshold: float | None = None  # replaces the exits' own, unless a request has one
        self._config = config
        self._target = target
        self._max_total_tokens = max_total_tokens
        self._launch = launch
        self._registry = RequestRegistry()
        self._balancer = Balancer(self._registry, config.score_rate, config.queue_lookahead)
        self.engines: list[Engine] = []
        self._tasks: list[asyncio.Task[None]] = []
        self._num_requests = 0
        self._is_closed = False

    def add_observer(self, observer: Observer) -> None:
        """Add an observer; only before `start`."""
        self._registry.add_observer(observer)

    async def start(self) -> None:
        """Start all shards; return once one serves (the others follow).

        Raises `ShardDied` with one sentence for the user when a shard reports that it never will serve, and
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

        Requests that have not ended by then fail with a sentence that says so. A shard that dies meanwhile is
        not restarted. Idempotent.
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
    def num_waiting(self) -> int:
        """Requests in the queue."""
        return len(self._balancer.queue)

    @property
    def max_queued_tokens(self) -> int:
        """The configured limit, else the KV caches' size in tokens: about one turnover of the batches."""
        if self._config.max_queued_tokens is not None:
            return self._config.max_queued_tokens
        block_size = self._target.config.block_tokens
        return sum(engine.num_blocks * block_size for engine in self.engines) or sys.maxsize

    @property
    def max_queued_requests(self) -> int:
        """Limit of queued requests: one for each KV block of `max_queued_tokens`."""
        return max(1, self.max_queued_tokens // self._target.config.block_tokens)

    def try_admit(self, num_tokens: int, num_requests: int = 1, max_requests: int | None = None) -> None:
        """Check the queue's limits on arrival, with an estimate of the prompt tokens of all `num_requests`.

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
        """End a request in any state, unless it has ended; its blocks are free within two steps.

        A reader of `request.take()` gets `GenerationFailed(message, kind="cancelled", status=499)`.
        """
        if request.status is Status.FINISHED:
            return
        if not self._balancer.queue.remove(request) and request.shard is not None:
            self.engines[request.shard].drop(request)
        now = asyncio.get_running_loop().time()
        self._registry.fail(request, GenerationFailed(message, "cancelled", 499), now)

    def check_swappable(self, shard: int | None = None) -> frozenset[int]:
        """The given shard, or all shards that are not hopeless. Raises `KeyError` for an unknown shard.

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
        """Each shard's target and its previous one. Raises `KeyError` for an unknown shard."""
        return [(engine.target, engine.before) for engine in self._chosen(shard)]

    def served_model(self, shard: int) -> ServedModel | None:
        """The model that requests begin on at a shard; None while it does not serve."""
        scheduler = self.engines[shard].scheduler
        return None if scheduler is None else scheduler.newest

    @property
    def served_models(self) -> dict[int, ServedModel]:
        """The model that requests begin on, by each shard that serves, in order."""
        schedulers = ((engine.shard, engine.scheduler) for engine in self.engines)
        return {shard: scheduler.newest for shard, scheduler in schedulers if scheduler is not None}

    @property
    def current(self) -> ServedModel | None:
        """The model on which a request that arrives now most likely begins; None while loading."""
        ready = [engine for engine in self.engines if engine.served_model is not None]
        chosen = next((engine for engine in ready if engine.scheduler is not None), next(iter(ready), None))
        return None if chosen is None else chosen.served_model

    @property
    def limits(self) -> Ready | None:
        """`Ready` of the current model; None while loading."""
        return None if self.current is None else self.current.ready

    @property
    def max_total_tokens(self) -> int:
        """Greatest length of prompt and answer that every model accepts that may serve."""
        lengths = [engine.ready.max_total_tokens for engine in self.engines if engine.ready is not None]
        return min([*lengths, self._max_total_tokens or sys.maxsize])

    @property
    def supports_exact(self) -> bool:
        """Some shard has all layers of its model."""
        return any(
            engine.served_model is not None and engine.served_model.is_whole for engine in self.engines
        )

    @property
    def reusable_tokens(self) -> float:
        """Mean over serving shards: prefix-cached tokens times the share of prompt tokens found so far."""
        schedulers = [engine.scheduler for engine in self.engines if engine.scheduler is not None]
        expected = [
            scheduler.cache.known_blocks * scheduler.limits.block_size * scheduler.cache.hit_share
            for scheduler in schedulers
        ]
        return sum(expected) / max(1, len(expected))

    @property
    def is_ready(self) -> bool:
        """Some shard serves, and new requests are accepted."""
        serving = (engine.scheduler is not None and not engine.is_draining for engine in self.engines)
        return not self._is_closed and any(serving)

    def state(self) -> State:
        """The current state."""
        queue = self._balancer.queue
        shards = [_state_of(engine) for engine in self.engines]
        return State(
            waiting=len(queue),
            queued_tokens=queue.num_tokens,
            running=sum(shard.running for shard in shards),
            is_draining=self._is_closed,
            shards=shards,
            held=len(queue) if self._is_held else 0,
            agreement=self._balancer.agreement.report(),
        )

    @property
    def _is_held(self) -> bool:
        """Every shard that serves begins nothing because of a change."""
        schedulers = [engine.scheduler for engine in self.engines if engine.scheduler is not None]
        return bool(schedulers) and all(scheduler.is_holding for scheduler in schedulers)

    @property
    def max_running_tokens(self) -> int:
        """Upper bound of running requests' prompts and answers, together."""
        return sum(
            request.num_prompt_tokens + request.max_new_tokens
            for request in self._registry.live.values()
            if request.status is Status.RUNNING
        )

    def requests(self) -> list[Request]:
        """Live requests in order of arrival, then the last hundred that ended, latest first."""
        return [*self._registry.live.values(), *self._registry.ended]

    def find(self, request_id: int) -> Request | None:
        """One of `requests()`."""
        return self._registry.find(request_id)

    def route(self, admitted: Mapping[str, frozenset[Choice]]) -> None:
        """Reserve each class of prompts for shards with an admitted choice, while there is one."""
        self._balancer.route(admitted)

    def drain(self, shard: int | None = None) -> None:
        """Send a shard (or all) nothing new; running requests go on. `KeyError`: unknown shard."""
        for engine in self._chosen(shard):
            engine.drain()

    def resume(self, shard: int | None = None) -> None:
        """Undo `drain`."""
        for engine in self._chosen(shard):
            engine.resume()

    def clear_cache(self, shard: int | None = None) -> int:
        """Empty a shard's prefix cache (or all); the tokens that were known. `KeyError`: unknown shard."""
        return sum(engine.clear_cache() for engine in self._chosen(shard))

    async def _keep(self, engine: Engine) -> None:
        """Run an engine while the server lives; restart it if it fails."""
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
        """A refusal with an estimate of when the queue has room."""
        num_waiting = len(self._balancer.queue)
        num_running = max(1, len(self._registry.live) - num_waiting)
        wait_s = self._registry.mean_service_s * (num_waiting + 1) / num_running
        return GenerationFailed(message, "overloaded", 429, min(_MAX_RETRY_S, max(1, math.ceil(wait_s))))

    def _shard_config(self, shard: int) -> ShardConfig:
        """Shard 0's settings with this shard's device."""
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
        num_models=scheduler.num_models if scheduler else 0,
        running=scheduler.num_running if scheduler else 0,
        num_free_blocks=scheduler.num_free_blocks if scheduler else 0,
        num_blocks=scheduler.num_blocks if scheduler else ready.num_blocks if ready else 0,
        heartbeat_age_ms=None if engine.last_heard is None else 1000 * (now - engine.last_heard),
        num_deaths=engine.num_deaths,
        reason=engine.last_death.reason if engine.last_death else "",
        warnings=ready.warnings if ready else [],
        dtype=ready.dtype if ready else "",
        compute_dtype=ready.compute_dtype if ready else "",
        weights=ready.weights if ready else "",
        kv_dtype=ready.kv_dtype if ready else "",
        kernels=ready.kernels if ready else "",
        dtype_reason=ready.dtype_reason if ready else "",
        exit_thresholds=ready.exit_thresholds if ready else {},
        swap_phase=engine.swap_phase,
        cache=scheduler.cache if scheduler else CacheState(),
    )
