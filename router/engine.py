"""One shard's loop: schedule, step, update. It outlives the shard, which has many lives."""

import asyncio
import logging
from collections.abc import Callable
from typing import NoReturn

from router.backoff import Backoff
from router.launcher import Launcher
from router.observer import Observer
from router.pool import Pool
from router.request import GenerationFailed, Request
from router.scheduler import Delivery, Limits, Scheduler
from router.scoring import Reader
from router.shard_client import ShardClient, ShardDied
from shard.messages import Ready, ShardConfig, Step, StepOutput

log = logging.getLogger(__name__)


class Engine:
    """A shard, its scheduler while it serves, and what it is known by when it does not."""

    def __init__(self, shard: int, config: ShardConfig, launcher: Launcher, pool: Pool):
        self.shard = shard
        self.scheduler: Scheduler | None = None
        self.ready: Ready | None = None  # as of the latest life
        self.is_draining = False
        self.num_deaths = 0
        self.last_death: ShardDied | None = None
        self._config = config
        self._launcher = launcher
        self._pool = pool
        self._client: ShardClient | None = None
        self._woken = asyncio.Event()
        self._loop = asyncio.get_running_loop()

    async def run(self) -> None:
        """Serve through one life of the shard after the other, until cancelled.

        Raises `ShardDied` if the shard says at its first start that it never will serve.
        """
        backoff = Backoff()
        try:
            while True:
                began = self._loop.time()
                death = await self._live()
                self._bury(death, self._loop.time())
                await self._launcher.end()
                if death.permanent and self.ready is None:
                    raise death
                await asyncio.sleep(backoff.pause_s(self._loop.time() - began))
        finally:
            await self._launcher.end()

    @property
    def last_heard(self) -> float | None:
        """Loop time in seconds; None without a connection."""
        return self._client.last_heard if self._client is not None else None

    @property
    def state(self) -> str:
        """In the words of `/ops/state`."""
        if self.scheduler is not None:
            return "draining" if self.is_draining else "serving"
        return "loading" if self.last_death is None else "dead"

    @property
    def is_responsive(self) -> bool:
        return self._client is not None and not self._client.is_late

    @property
    def is_hopeless(self) -> bool:
        return self.scheduler is None and self.last_death is not None and self.last_death.permanent

    def wake(self) -> None:
        self._woken.set()

    def drop(self, request: Request) -> None:
        """Take a request out of the batch; the shard learns of it with the next step."""
        if self.scheduler is not None and self.scheduler.drop(request):
            self.wake()

    async def _live(self) -> ShardDied:
        """Start the shard and serve until it dies, of which the reason is returned."""
        try:
            self._client, ready = await self._launcher.start(self.wake)
            await self._serve(self._client, self._open(ready))
        except ShardDied as death:
            return death
        except Exception as error:
            log.exception("The loop of shard %d failed.", self.shard)
            return ShardDied(f"The router failed to work with it: {error}.")

    async def _serve(self, client: ShardClient, scheduler: Scheduler) -> NoReturn:
        """Schedule, step, update: the next step is on the shard before the one that runs is done."""
        while True:
            for output in client.take_outputs():
                self._deliver(scheduler, output)
            while (step := self._schedule(scheduler)) is not None:
                client.send(step)
            self._pool.nudge()
            await self._woken.wait()
            self._woken.clear()

    def _open(self, ready: Ready) -> Scheduler:
        config = self._config
        limits = Limits(config.max_batch_size, config.max_batch_tokens, ready.block_size, ready.num_blocks)
        self.ready = ready
        is_whole = ready.depth == ready.num_layers
        reader = Reader(self._pool.backlog, ready.block_size, ready.num_blocks) if is_whole else None
        self.scheduler = Scheduler(self.shard, limits, self._pool.queue, reader)
        self._pool.serving.set()
        self._tell(lambda observer: observer.on_shard_ready(self.shard, ready))
        log.info("Shard %d is ready: %s on %s.", self.shard, ready.model, ready.device)
        return self.scheduler

    def _schedule(self, scheduler: Scheduler) -> Step | None:
        now = self._loop.time()
        self._pool.expire(now)
        step = scheduler.schedule(now, self._pool.share(self))
        for new in step.new if step is not None else []:
            request = self._pool.ledger.live.get(new.id)
            if request is not None:  # else an answer to be read again
                self._note_start(request)
        return step

    def _note_start(self, request: Request) -> None:
        if self.ready is not None:
            request.model, request.version = self.ready.model, self.ready.version
        if request.attempt == 0:
            self._tell(lambda observer: observer.on_started(request))

    def _deliver(self, scheduler: Scheduler, output: StepOutput) -> None:
        """Give a step's tokens to their requests, then tell the observers."""
        now = self._loop.time()
        update = scheduler.update(output)
        for delivery in update.deliveries:
            self._put(scheduler, delivery, now)
        for request in update.preempted:
            self._tell(_preemption(request))
        if update.read is not None:
            self._pool.note_scores(update.read)
        self._tell(lambda observer: observer.on_step(self.shard, output))

    def _put(self, scheduler: Scheduler, delivery: Delivery, now: float) -> None:
        request, num_tokens = delivery.request, len(delivery.tokens)
        request.put_prompt(delivery.prompt)
        is_over = request.put(delivery.tokens, delivery.finish, now)
        if num_tokens:
            self._tell(lambda observer: observer.on_tokens(request, num_tokens, now))
        if is_over:
            scheduler.drop(request)  # the shard does not know of stop strings
            self._pool.ledger.end(request)
            self._pool.offer_to_score(request)

    def _bury(self, death: ShardDied, now: float) -> None:
        """Put what ran on a shard that has died back into the queue, but for what it has died of."""
        log.warning("Shard %d is gone: %s", self.shard, death)
        scheduler, self.scheduler, self._client = self.scheduler, None, None
        self.last_death = death
        if scheduler is not None:
            self.num_deaths += 1
            for request in scheduler.lose():
                self._pool.ledger.fail(request, _condemnation(request), now)
            self._tell(lambda observer: observer.on_shard_death(self.shard, death.reason))
        if self._pool.is_hopeless:
            self._pool.fail_waiting(GenerationFailed(f"No shard can serve: {death}"), now)
        self._pool.nudge()

    def _tell(self, event: Callable[[Observer], None]) -> None:
        self._pool.ledger.tell(event)


def _condemnation(request: Request) -> GenerationFailed:
    deaths = request.num_shard_deaths
    return GenerationFailed(f"{deaths} shards died while they ran this request; it is not tried again.")


def _preemption(request: Request) -> Callable[[Observer], None]:
    return lambda observer: observer.on_preempted(request)
