"""One shard's loop: schedule, step, update. It outlives the shard, which has many lives."""

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
from router.scheduling.observer import Observer
from router.scheduling.request import GenerationFailed, Request, Status
from router.scheduling.scheduler import Delivery, Limits, Scheduler
from router.text.tokenizer import Tokenizer
from shard.messages import Committed, FinishReason, Ready, Step, StepOutput
from telemetry import tasks

log = logging.getLogger(__name__)

MAX_OFFERED = 8  # changes of model that a shard may still answer: it works on one at a time


class Engine:
    """A shard, its scheduler while it serves, and what it is known by when it does not."""

    def __init__(self, shard: int, target: Target, launcher: Launcher, balancer: Balancer):
        self.shard = shard
        self.scheduler: Scheduler | None = None
        self.target = target  # committed last: what every life starts with
        self.before: Target | None = None  # what that has replaced
        self.served_model: ServedModel | None = None  # that requests begin on, as of the latest life
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
        self._offered: dict[int, Target] = {}  # to this life of the shard, by epoch; the latest few
        self._last_epoch = 0
        self._woken = asyncio.Event()
        self._retired = asyncio.Event()
        self._is_loading = False
        self._loop = asyncio.get_running_loop()

    async def run(self) -> None:
        """Serve through one life of the shard after the other, until cancelled; the last one once retired.

        Raises `ShardDied` if the shard says at its first start that it never will serve.
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
        """Start the shard no more: what it is doing is its last."""
        self._retired.set()

    def reset(self, reason: str) -> None:
        """After a failure of the engine itself: nothing runs here, and nobody waits for what did."""
        self.scheduler = self.client = None
        self.last_death = ShardDied(f"The router failed to work with it: {reason}.")
        self._balancer.routes.serve(self.shard, None)
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
        """In the words of `/ops/state`."""
        if self.scheduler is not None:
            return "draining" if self.is_draining else "swapping" if self._swap is not None else "serving"
        return "loading" if self.last_death is None else "dead"

    @property
    def ready(self) -> Ready | None:
        """What the shard has said of the model that requests begin on."""
        return None if self.served_model is None else self.served_model.ready

    @property
    def num_blocks(self) -> int:
        """KV blocks of the newest model, counting those that older models will give back."""
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
        """It has the model that a request was begun on, or will have it when it is back."""
        if self.scheduler is not None:
            return self.scheduler.has_model(identity)
        return (
            not self.is_hopeless and self.served_model is not None and self.served_model.identity == identity
        )

    def can_serve(self, requirements: Requirements) -> bool:
        """Such a request may run here, if not now then later."""
        if self.scheduler is not None:
            return self.scheduler.can_serve(requirements)
        return (
            not self.is_hopeless and self.served_model is not None and self.served_model.takes(requirements)
        )

    def check_swappable(self) -> None:
        """Raises `SwapRefused` when it is being swapped, or does not serve."""
        if self._retired.is_set():
            raise SwapRefused("The server is shutting down.")
        if self._swap is not None:
            raise SwapRefused(f"Shard {self.shard} is being swapped already.")
        if self.scheduler is None:
            raise SwapRefused(f"Shard {self.shard} does not serve.")

    async def swap(self, target: Target, options: SwapOptions) -> SwapResult:
        """Change the model. Raises `SwapError`, after which what ran runs on."""
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
        """Serve again what served before; a dead shard does from its next life on. Raises `SwapError`."""
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
        """Have a swap that is under way fail, unless it is committed already."""
        if self._swap is not None:
            self._swap.end(error)

    def wake(self) -> None:
        self._woken.set()

    def drain(self) -> None:
        """Begin nothing new; what has begun goes on."""
        self.is_draining = True
        self._balancer.routes.serve(self.shard, None)

    def resume(self) -> None:
        """Undo `drain`."""
        self.is_draining = False
        self._enter_routes()
        self.wake()

    def drop(self, request: Request) -> None:
        """Take a request out of the batch; the shard learns of it with the next step."""
        if self.scheduler is not None and self.scheduler.drop(request):
            self.wake()

    async def _live(self) -> ShardDied:
        """Start the shard and serve until it dies, of which the reason is returned."""
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
        """Before the next life, unless there is none."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(pause_s):
                await self._retired.wait()

    async def _serve(self, client: ShardClient, scheduler: Scheduler) -> NoReturn:
        """Schedule, step, update: the next step is on the shard before the one that runs is done."""
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
        self.scheduler = Scheduler(self.shard, limits, self.served_model, queue, score_queue)
        self._enter_routes()
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
        """From here on requests begin on what was committed, and so does every later life of the shard."""
        self.before, self.target = self.target, self._offered[committed.epoch]
        served_model = self.served_model = ServedModel(committed.epoch, self.target, committed.ready)
        config = self.target.config
        limits = Limits(config.max_batch_size, config.max_batch_tokens, committed.ready.block_size)
        scheduler.adopt(served_model, limits, committed.joined)
        self._enter_routes()
        self._tell(lambda observer: observer.on_shard_ready(self.shard, served_model))
        depth, num_layers = committed.ready.depth, committed.ready.num_layers
        log.info("Shard %d serves %s, %d of %d layers.", self.shard, self.target.name, depth, num_layers)
        self._warn(committed.ready)

    def _enter_routes(self) -> None:
        if self.scheduler is not None and not self.is_draining:
            self._balancer.routes.serve(self.shard, self.served_model)

    def _warn(self, ready: Ready) -> None:
        for sentence in ready.warnings:
            log.warning("Shard %d: %s", self.shard, sentence)

    def _go_on(self) -> None:
        """What may run has changed, for this shard and maybe for others."""
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
            if started is not None and started.attempt == 0:  # else begun before, or to be read again
                self._tell(_start(started))
        return step

    async def _encode(self, request: Request, tokenizer: Tokenizer) -> None:
        """Queue a request again in the ids of a tokenizer. All streams go on meanwhile."""
        try:
            encoded = await asyncio.to_thread(request.encoded_by, tokenizer)
        except GenerationFailed as error:
            if request.status is not Status.FINISHED:
                self._turn_away(request, error, self._loop.time())
            return
        if request.status is not Status.FINISHED:  # nobody has left meanwhile
            request.switch(tokenizer, encoded)
            self._balancer.queue.add(request)
            self._go_on()

    def _turn_away(self, request: Request, error: GenerationFailed, now: float) -> None:
        """End what the model cannot take: an answer that was begun is over, as there is no room for more."""
        if not request.outputs:
            self._balancer.registry.fail(request, error, now)
            return
        request.put([], FinishReason.LENGTH, now)
        self._balancer.registry.end(request)

    def _deliver(self, scheduler: Scheduler, output: StepOutput) -> None:
        """Give a step's tokens to their requests, then tell the observers."""
        now = self._loop.time()
        update = scheduler.update(output)
        for delivery in update.deliveries:
            self._put(scheduler, delivery, now)
        for request in update.preempted:
            self._tell(_preemption(request))
        if update.scored is not None:
            self._balancer.note_scores(update.scored)
        self._tell(lambda observer: observer.on_step(self.shard, output))

    def _put(self, scheduler: Scheduler, delivery: Delivery, now: float) -> None:
        request = delivery.request
        if any(math.isnan(token.logprob) for token in delivery.tokens):
            scheduler.drop(request)
            self._balancer.registry.fail(
                request, GenerationFailed("The model's logits are not numbers."), now
            )
            return
        request.put_prompt(delivery.prompt)
        last, num_before = request.timeline.last_token, len(request.outputs)
        is_over = request.put(delivery.tokens, delivery.finish, now)
        if tokens := request.outputs[num_before:]:
            gap_s = None if last is None else now - last
            self._tell(lambda observer: observer.on_tokens(request, tokens, gap_s))
        if is_over:
            scheduler.drop(request)  # the shard does not know of stop strings
            self._balancer.registry.end(request)
            self._balancer.offer_to_score(request)

    def _bury(self, death: ShardDied, now: float) -> None:
        """Put what ran on a shard that has died back into the queue, but for what it has died of."""
        if not self._is_useless(death):  # of which whoever started it tells
            log.warning("Shard %d is gone: %s", self.shard, death)
        scheduler, self.scheduler, self.client = self.scheduler, None, None
        self.last_death = death
        self._balancer.routes.serve(self.shard, None)
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
        """Queue again what ran on a shard that has died, but for what it has died of twice.

        Where a model was being changed, that is likelier to blame than any request.
        """
        if self._swap is not None:
            scheduler.release()
        for request in scheduler.lose():
            self._balancer.registry.fail(request, _condemnation(request), now)

    def _is_useless(self, death: ShardDied) -> bool:
        """It never has served, and never will."""
        return death.permanent and self.served_model is None

    def _why_none_serves(self, death: ShardDied) -> GenerationFailed:
        if not self._retired.is_set():
            return GenerationFailed(f"No shard can serve: {death}")
        error = f"The server is shutting down, and its last shard is gone: {death}"
        return GenerationFailed(error, "incomplete_generation", 500)

    def _fall_back(self, death: ShardDied) -> None:
        """What was committed last cannot be started any more: go back to what that has replaced."""
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
