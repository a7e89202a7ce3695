"""One shard's loop: schedule, step, update. It outlives the shard process, which may be restarted."""

import asyncio
import contextlib
import logging
import math
from collections.abc import Callable
from typing import NoReturn

import msgspec

from router.catalog.served_model import ModelIdentity, Requirements, ServedModel, Target
from router.fleet.backoff import Backoff
from router.fleet.balancer import Balancer
from router.fleet.client import Answered, ShardClient, ShardDied
from router.fleet.launcher import Launcher
from router.fleet.swap import Swap, SwapError, SwapOptions, SwapRefused, SwapResult
from router.scheduling.moves import What
from router.scheduling.observer import Observer
from router.scheduling.prefix_index import PrefixIndex
from router.scheduling.request import GenerationFailed, Request, Status
from router.scheduling.scheduler import Delivery, Limits, Scheduler
from router.scheduling.step_tokens import StepTokens
from router.text.tokenizer import Tokenizer
from shard.messages import Committed, FinishReason, Ready, Step, StepOutput
from telemetry import tasks

log = logging.getLogger(__name__)

MAX_OFFERED = 8  # swaps that a shard may still answer


class Engine:
    """Runs one shard: its scheduler while it serves, its state otherwise."""

    def __init__(self, shard: int, target: Target, launcher: Launcher, balancer: Balancer):
        self.shard = shard
        self.scheduler: Scheduler | None = None
        self.target = target  # committed last: every restart loads it
        self.before: Target | None = None  # the previous target
        self.served_model: ServedModel | None = None  # that requests begin on, as of the latest start
        self.is_draining = False
        self.num_deaths = 0
        self.last_death: ShardDied | None = None
        self._device = target.config.device
        self.launcher = launcher
        self._balancer = balancer
        self.client: ShardClient | None = None
        self._swap: Swap | None = None
        self._encoding: set[asyncio.Task[None]] = set()
        self._num_blocks_at_start = 0
        self._offered: dict[int, Target] = {}  # by epoch: the latest swaps sent since the start
        self._last_epoch = 0
        self._woken = asyncio.Event()
        self._retired = asyncio.Event()
        self._is_loading = False
        self._loop = asyncio.get_running_loop()

    async def run(self) -> None:
        """Start the shard and serve, again after each death, until cancelled or retired.

        Raises `ShardDied` if the shard reports at its first start that it never will serve.
        """
        backoff = Backoff()
        try:
            while not self._retired.is_set():
                began = self._loop.time()
                death = await self._live()
                self._bury(death, self._loop.time())
                await self.launcher.end()
                if self._is_useless(death):
                    raise death
                await self._pause(backoff.pause_s(self._loop.time() - began))
        finally:
            self.end_swap(SwapError("The server is shutting down."))
            for encoding in self._encoding:
                encoding.cancel()
            await self.launcher.end()

    def retire(self) -> None:
        """Do not restart the shard when it ends."""
        self._retired.set()

    def reset(self, reason: str) -> None:
        """Clear the state after a failure of the engine itself, failing its requests."""
        self.scheduler = self.client = None
        self.last_death = ShardDied(f"The router failed to work with it: {reason}.")
        self._balancer.routes.refresh()
        self.end_swap(SwapError(self.last_death.reason))
        lost = [request for request in self._balancer.registry.live.values() if request.shard == self.shard]
        for request in lost:
            self._balancer.registry.fail(request, GenerationFailed(self.last_death.reason), self._loop.time())
        self._balancer.nudge()

    @property
    def last_heard(self) -> float | None:
        """Loop time in seconds; None without a connection."""
        return self.client.last_heard if self.client is not None else None

    @property
    def state(self) -> str:
        """The state shown by `/ops/state`."""
        if self.scheduler is not None:
            return "draining" if self.is_draining else "swapping" if self._swap is not None else "serving"
        return "loading" if self.last_death is None else "dead"

    @property
    def swap_phase(self) -> str:
        """Phase of the change under way; "" without one."""
        return "" if self._swap is None else self._swap.phase

    @property
    def ready(self) -> Ready | None:
        """The shard's `Ready` for the model that requests begin on."""
        return None if self.served_model is None else self.served_model.ready

    @property
    def num_blocks(self) -> int:
        """KV blocks of the newest model, including those that older models will give back."""
        now = 0 if self.scheduler is None else self.scheduler.num_blocks
        return max(now, self._num_blocks_at_start)

    @property
    def is_responsive(self) -> bool:
        return self.client is not None and not self.client.is_late

    @property
    def is_hopeless(self) -> bool:
        if self.scheduler is not None:
            return False
        if self._retired.is_set() and not self._is_loading:
            return True
        return self.last_death is not None and self.last_death.permanent

    def has_model(self, identity: ModelIdentity) -> bool:
        """It has the model that began a request, or will have it after its restart."""
        if self.scheduler is not None:
            return self.scheduler.has_model(identity)
        return (
            not self.is_hopeless and self.served_model is not None and self.served_model.identity == identity
        )

    def can_serve(self, requirements: Requirements) -> bool:
        """A request with these requirements may run here, now or later."""
        if self.scheduler is not None:
            return self.scheduler.can_serve(requirements)
        return (
            not self.is_hopeless and self.served_model is not None and self.served_model.takes(requirements)
        )

    def check_swappable(self) -> None:
        """Raises `SwapRefused` when a swap is under way or the shard does not serve."""
        if self._retired.is_set():
            raise SwapRefused("The server is shutting down.")
        if self._swap is not None:
            raise SwapRefused(f"Shard {self.shard} is being swapped already.")
        if self.scheduler is None:
            raise SwapRefused(f"Shard {self.shard} does not serve.")

    async def swap(self, target: Target, options: SwapOptions) -> SwapResult:
        """Change the model. Raises `SwapError`, after which the old model serves on."""
        self.check_swappable()
        assert self.scheduler is not None
        assert self.client is not None
        epoch = self._last_epoch = self._last_epoch + 1
        self._offered = {old: kept for old, kept in self._offered.items() if old > epoch - MAX_OFFERED}
        config = msgspec.structs.replace(target.config, device=self._device)
        target = self._offered[epoch] = msgspec.structs.replace(target, config=config)
        self._swap = Swap(epoch, target, self.client, self.scheduler, self._go_on)
        try:
            done = await self._swap.run(options)
        except SwapError:
            self._tell(lambda observer: observer.on_swap(self.shard, "failed", {}))
            raise
        finally:
            self._swap = None
        self._tell(lambda observer: observer.on_swap(self.shard, "committed", done.phases_ms))
        self._balancer.fail_hopeless(self._loop.time())
        return done

    async def swap_back(self, options: SwapOptions) -> None:
        """Return to the previous target; a dead shard does so when restarted. Raises `SwapError`."""
        if self.before is None:
            return
        if self.scheduler is not None:
            try:
                await self.swap(self.before, options)
                return
            except SwapError:
                if self.scheduler is not None:
                    raise
        self.target, self.before = self.before, self.target

    def end_swap(self, error: SwapError) -> None:
        """Fail a swap under way, unless it is committed already."""
        if self._swap is not None:
            self._swap.end(error)

    def wake(self) -> None:
        self._woken.set()

    def drain(self) -> None:
        """Begin nothing new; running requests go on."""
        self.is_draining = True
        self._balancer.routes.refresh()

    def resume(self) -> None:
        """Undo `drain`."""
        self.is_draining = False
        self._balancer.routes.refresh()
        self.wake()

    def clear_cache(self) -> int:
        """Forget what prompts and answers have left behind; returns the tokens that could be found."""
        if self.scheduler is None:
            return 0
        num_blocks = self.scheduler.clear_cache()
        self.wake()
        return num_blocks * self.scheduler.limits.block_size

    def drop(self, request: Request) -> None:
        """Take a request out of the batch; the next step tells the shard."""
        if self.scheduler is not None and self.scheduler.drop(request):
            self.wake()

    async def _live(self) -> ShardDied:
        """Start the shard and serve until it dies; returns the cause."""
        try:
            target = self.target
            self.client, ready = await self._start(target)
            if self.target is not target:
                return ShardDied(f"It has loaded {target.name}, and was to serve {self.target.name} by then.")
            await self._serve(self.client, self._open(ready))
        except ShardDied as death:
            return death
        except Exception as error:
            log.exception("The loop of shard %d failed.", self.shard)
            return ShardDied(f"The router failed to work with it: {error}.")

    async def _start(self, target: Target) -> tuple[ShardClient, Ready]:
        self._is_loading = True
        try:
            return await self.launcher.start(target.config, self.wake)
        finally:
            self._is_loading = False

    async def _pause(self, pause_s: float) -> None:
        """Wait before a restart, unless retired."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(pause_s):
                await self._retired.wait()

    async def _serve(self, client: ShardClient, scheduler: Scheduler) -> NoReturn:
        """Schedule, step, update. The next step is sent before the running one is done."""
        while True:
            for answer in client.take_answers():
                self._hear(scheduler, answer)
            while (step := self._schedule(scheduler)) is not None:
                client.send(step)
            self._balancer.nudge()
            await self._woken.wait()
            self._woken.clear()

    def _hear(self, scheduler: Scheduler, answer: Answered) -> None:
        match answer:
            case StepOutput():
                self._deliver(scheduler, answer)
            case Committed():
                self._adopt(scheduler, answer)
        if self._swap is not None:
            self._swap.hear(answer)

    def _open(self, ready: Ready) -> Scheduler:
        config = self.target.config
        limits = Limits(config.max_batch_size, config.max_batch_tokens, ready.block_size)
        served_model = self.served_model = ServedModel(0, self.target, ready)
        self._offered.clear()
        self._last_epoch = 0
        self._num_blocks_at_start = ready.num_blocks
        queue, score_queue = self._balancer.queue, self._balancer.score_queue
        prefixes = PrefixIndex(ready.num_blocks) if self.target.config.prefix_cache else None
        self.scheduler = Scheduler(self.shard, limits, self.served_model, queue, score_queue, prefixes)
        self._balancer.routes.refresh()
        self._balancer.serving.set()
        self._tell(lambda observer: observer.on_shard_ready(self.shard, served_model))
        log.info("Shard %d is ready: %s on %s.", self.shard, ready.model, ready.device)
        if ready.dtype_reason:
            kinds = ready.dtype, ready.compute_dtype, ready.kernels
            log.info("Shard %d stores %s and computes in %s (%s). %s", self.shard, *kinds, ready.dtype_reason)
        self._warn(ready)
        self._balancer.fail_hopeless(self._loop.time())
        return self.scheduler

    def _adopt(self, scheduler: Scheduler, committed: Committed) -> None:
        """Begin requests on the committed model, and load it at every later start of the shard."""
        self.before, self.target = self.target, self._offered[committed.epoch]
        served_model = self.served_model = ServedModel(committed.epoch, self.target, committed.ready)
        config = self.target.config
        limits = Limits(config.max_batch_size, config.max_batch_tokens, committed.ready.block_size)
        scheduler.adopt(served_model, limits, committed.joined, committed.kept_blocks)
        self._balancer.routes.refresh()
        self._tell(lambda observer: observer.on_shard_ready(self.shard, served_model))
        depth, num_layers = committed.ready.depth, committed.ready.num_layers
        log.info("Shard %d serves %s, %d of %d layers.", self.shard, self.target.name, depth, num_layers)
        self._warn(committed.ready)

    def _warn(self, ready: Ready) -> None:
        for sentence in ready.warnings:
            log.warning("Shard %d: %s", self.shard, sentence)

    def _go_on(self) -> None:
        """Reschedule after a change in what may run, on this shard and others."""
        self.wake()
        self._balancer.nudge()

    def _schedule(self, scheduler: Scheduler) -> Step | None:
        now = self._loop.time()
        self._balancer.expire(now)
        step = scheduler.schedule(now, self._balancer.quota(self))
        for request, error in scheduler.take_unfit():
            self._turn_away(request, error, now)
        for request, tokenizer in scheduler.take_to_encode():
            encoding = tasks.begin(self._encode(request, tokenizer), f"Encoding request {request.id} again")
            self._encoding.add(encoding)
            encoding.add_done_callback(self._encoding.discard)
        for new in step.new if step is not None else []:
            started = self._balancer.registry.live.get(new.id)
            if started is not None and started.attempt == 0:  # else started before, or a scored answer
                self._tell(_start(started))
        return step

    async def _encode(self, request: Request, tokenizer: Tokenizer) -> None:
        """Encode a request for another tokenizer on a thread, and queue it again."""
        try:
            encoded = await asyncio.to_thread(request.encoded_by, tokenizer)
        except GenerationFailed as error:
            if request.status is not Status.FINISHED:
                self._turn_away(request, error, self._loop.time())
            return
        if request.status is not Status.FINISHED:  # not aborted meanwhile
            request.switch(tokenizer, encoded)
            self._balancer.queue.add(request)
            self._go_on()

    def _turn_away(self, request: Request, error: GenerationFailed, now: float) -> None:
        """End a request that the model cannot take. An answer already begun ends by length."""
        if not request.outputs:
            self._balancer.registry.fail(request, error, now)
            return
        request.put([], FinishReason.LENGTH, now)
        self._balancer.registry.end(request)

    def _deliver(self, scheduler: Scheduler, output: StepOutput) -> None:
        """Pass a step's tokens to their requests, then notify the observers."""
        now = self._loop.time()
        update = scheduler.update(output)
        by_epoch: dict[int, StepTokens] = {}
        for delivery in update.deliveries:
            self._put(scheduler, delivery, by_epoch, now)
        for request in update.gone:
            request.note_return(What.MODEL_CHANGED, now)
        for request in update.preempted:
            request.note_return(What.PREEMPTED, now)
            self._tell(_preemption(request))
        if update.scored is not None:
            self._balancer.note_scores(update.scored)
        self._tell(lambda observer: observer.on_step(self.shard, output))

    def _put(
        self, scheduler: Scheduler, delivery: Delivery, by_epoch: dict[int, StepTokens], now: float
    ) -> None:
        request, made = delivery.request, delivery.made
        if made.error:
            self._balancer.registry.fail(request, GenerationFailed(made.error), now)
            return
        for token in made.tokens:
            if math.isnan(token.logprob):
                scheduler.drop(request)
                error = GenerationFailed("The model's logits are not numbers.")
                self._balancer.registry.fail(request, error, now)
                return
        if made.prompt:
            request.put_prompt(made.prompt)
        last, num_before = request.timeline.last_token, len(request.outputs)
        is_over = request.put(made.tokens, made.finish, now)
        if tokens := request.outputs[num_before:]:
            self._tokens_of(request, by_epoch).add(tokens, request.timeline.arrived, last, now)
        if is_over:
            scheduler.drop(request)  # the shard does not know of stop strings
            self._balancer.registry.end(request)
            self._balancer.offer_to_score(request)

    def _tokens_of(self, request: Request, by_epoch: dict[int, StepTokens]) -> StepTokens:
        """The step's sums for the request's model. Observers are told once, when they are complete."""
        assert request.served_model is not None
        tokens = by_epoch.get(request.served_model.epoch)
        if tokens is None:
            tokens = by_epoch[request.served_model.epoch] = StepTokens(request.served_model)
            self._tell(lambda observer: observer.on_tokens(self.shard, tokens))
        return tokens

    def _bury(self, death: ShardDied, now: float) -> None:
        """After the shard's death, take back its requests, and fail a swap under way."""
        if not self._is_useless(death):  # `start` reports that
            log.warning("Shard %d is gone: %s", self.shard, death)
        scheduler, self.scheduler, self.client = self.scheduler, None, None
        self.last_death = death
        self._balancer.routes.refresh()
        if scheduler is not None:
            self.num_deaths += 1
            self._take_back(scheduler, now)
            self._tell(lambda observer: observer.on_shard_death(self.shard, death.reason))
        elif death.permanent:
            self._fall_back(death)
        self.end_swap(SwapError(f"The shard died meanwhile: {death.reason}"))
        if self._balancer.is_hopeless:
            self._balancer.fail_waiting(self._why_none_serves(death), now)
        self._balancer.nudge()

    def _take_back(self, scheduler: Scheduler, now: float) -> None:
        """Queue a dead shard's requests again, except those present at two deaths, which fail.

        During a swap no request is blamed: the swap is the likelier cause.
        """
        running = list(scheduler.running.values())
        if self._swap is not None:
            scheduler.release()
        for request in scheduler.lose():
            self._balancer.registry.fail(request, _condemnation(request), now)
        for request in running:
            if request.status is Status.WAITING:
                request.note_return(What.SHARD_DIED, now)

    def _is_useless(self, death: ShardDied) -> bool:
        """The shard has never served, and never will."""
        return death.permanent and self.served_model is None

    def _why_none_serves(self, death: ShardDied) -> GenerationFailed:
        if not self._retired.is_set():
            return GenerationFailed(f"No shard can serve: {death}")
        error = f"The server is shutting down, and its last shard is gone: {death}"
        return GenerationFailed(error, "incomplete_generation", 500)

    def _fall_back(self, death: ShardDied) -> None:
        """Return to the previous target if the one committed last cannot be started."""
        if self.before is not None:
            log.warning("Shard %d goes back from %s to %s.", self.shard, self.target.name, self.before.name)
            self.target, self.before = self.before, None
            self.last_death = ShardDied(death.reason)

    def _tell(self, event: Callable[[Observer], None]) -> None:
        self._balancer.registry.tell(event)


def _condemnation(request: Request) -> GenerationFailed:
    deaths = request.num_shard_deaths
    return GenerationFailed(f"{deaths} shards died while they ran this request; it is not tried again.")


def _start(request: Request) -> Callable[[Observer], None]:
    return lambda observer: observer.on_started(request)


def _preemption(request: Request) -> Callable[[Observer], None]:
    return lambda observer: observer.on_preempted(request)
