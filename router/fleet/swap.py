"""One change of one shard's model: prepare beside the steps, commit between two of them, migrate requests.

Bound to one connection of one shard. After any failure before the commit the old model serves on.
"""

import asyncio
import enum
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import msgspec

from router.catalog.served_model import ServedModel, Target
from router.fleet.client import Answered, ShardClient
from router.scheduling.moves import What
from router.scheduling.request import Request
from router.scheduling.scheduler import Scheduler
from shard.messages import Commit, Committed, Discard, Prepare, Prepared, SwapFailed

_MAX_PREPARE_S = 900.0  # a longer load counts as hung

_Answer = TypeVar("_Answer", Prepared, Committed)


class Inflight(enum.StrEnum):
    """What happens to sequences that run on the replaced model."""

    FINISH = "finish"  # they end on it
    MIGRATE = "migrate"  # they continue on the new one, recomputed from their tokens


class SwapError(Exception):
    """A swap failed; the old model serves on. The message is one sentence for the operator."""


class SwapRefused(SwapError):
    """A swap was not begun: the shard is busy with another one, or does not serve."""


class NotUndone(SwapError):
    """A swap failed on one shard, and shards already changed could not be reverted."""


class SwapOptions(msgspec.Struct, frozen=True):
    """Options of a swap."""

    inflight: Inflight = Inflight.FINISH
    drain_s: float = 10.0  # time for running requests to end if both models do not fit


class SwapResult(msgspec.Struct, frozen=True):
    """A completed swap. `hold` spans the phases in which nothing new began; `gap` is part of `commit`."""

    served_model: ServedModel
    phases_ms: dict[str, float]
    num_migrated: int
    num_kept_tokens: int = 0  # of what the prefix cache held
    num_dropped_tokens: int = 0  # of the same, that have to be computed again


class Swap:
    """One swap, from `Prepare` to the last migrated sequence. The engine passes it the shard's answers."""

    def __init__(
        self,
        epoch: int,
        target: Target,
        client: ShardClient,
        scheduler: Scheduler,
        wake: Callable[[], None],
    ):
        self._epoch = epoch
        self._target = target
        self._client = client
        self._scheduler = scheduler
        self._wake = wake  # makes the engine schedule
        self._loop = asyncio.get_running_loop()
        self.phase = ""  # that it is in: prepare, hold, commit, drain or migrate
        self._phases_ms: dict[str, float] = {}
        self._answer: asyncio.Future[Answered] | None = None
        self._heard = asyncio.Event()
        self._end: SwapError | None = None
        self._num_evicted = 0

    async def run(self, options: SwapOptions) -> SwapResult:
        """Carry out the swap. Raises `SwapError`."""
        try:
            with self._timed("prepare"):
                prepared = await self._prepare()
            with self._holding():
                committed = await self._commit(prepared, options)
        except BaseException:
            self._client.send(Discard(self._epoch))
            raise
        self._record_shard_phases(prepared.phases_ms | committed.phases_ms | {"gap": committed.gap_ms})
        num_migrated = self._num_evicted + self._migrate(options)
        num_kept = committed.kept_blocks * committed.ready.block_size
        return SwapResult(
            self._served_model(committed), self._phases_ms, num_migrated, num_kept, committed.dropped_tokens
        )

    def hear(self, answer: Answered) -> None:
        """Take an answer of the shard's."""
        self._heard.set()
        asked = self._answer
        if asked is None or asked.done():
            return
        if isinstance(answer, Prepared | Committed | SwapFailed) and answer.epoch == self._epoch:
            asked.set_result(answer)

    def end(self, error: SwapError) -> None:
        """Fail the swap."""
        self._end = error
        self._heard.set()
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(error)

    async def _prepare(self) -> Prepared:
        try:
            async with asyncio.timeout(_MAX_PREPARE_S):
                return await self._ask(Prepare(self._epoch, self._target.config), Prepared)
        except TimeoutError:
            raise SwapError(f"The shard has not loaded the model in {_MAX_PREPARE_S:.0f} s.") from None

    async def _commit(self, prepared: Prepared, options: SwapOptions) -> Committed:
        """Commit between two steps. While both models do not fit, wait for sequences to end, then evict."""
        drain_s = 0.0 if options.inflight is Inflight.MIGRATE else options.drain_s
        give_up = self._loop.time() + drain_s
        while True:
            was_at_rest, num_running = self._scheduler.is_at_rest, self._scheduler.num_running
            try:
                with self._timed("commit"):
                    return await self._ask(Commit(self._epoch), Committed)
            except SwapError:
                if was_at_rest or self._end is not None:
                    raise
            with self._timed("drain"):
                has_ended = await self._wait_for_end(num_running, give_up)
            if not has_ended:
                await self._evict(self._served_model(prepared))

    async def _evict(self, successor: ServedModel) -> None:
        """Queue all running requests again, for the successor. Raises `SwapError` if some cannot move."""
        bound = self._scheduler.stays(successor)
        if bound:
            raise SwapError(
                f"The memory of {len(bound)} requests is needed that cannot go on with another model "
                "(exact, too long for it, or given as token ids of another tokenizer)."
            )
        with self._timed("migrate"):
            self._num_evicted += self._note_returns(self._scheduler.evict())
            self._wake()
            await self._until(lambda: self._scheduler.is_at_rest)

    def _migrate(self, options: SwapOptions) -> int:
        """After the commit, migrate requests; returns how many continue on the new model."""
        if options.inflight is not Inflight.MIGRATE:
            return 0
        with self._timed("migrate"):
            num_migrated = self._note_returns(self._scheduler.migrate())
            self._wake()
        return num_migrated

    def _note_returns(self, requests: list[Request]) -> int:
        for request in requests:
            request.note_return(What.MODEL_CHANGED, self._loop.time())
        return len(requests)

    async def _wait_for_end(self, num_running: int, give_up: float) -> bool:
        """Wait until fewer than `num_running` requests run; False on timeout."""
        try:
            async with asyncio.timeout_at(give_up):
                await self._until(
                    lambda: self._scheduler.num_running < num_running or self._scheduler.is_at_rest
                )
        except TimeoutError:
            return False
        return True

    async def _until(self, is_true: Callable[[], bool]) -> None:
        """Wait until the shard's answers make a condition true. Raises `SwapError`."""
        while not is_true():
            self._heard.clear()
            await self._heard.wait()
            if self._end is not None:
                raise self._end

    async def _ask(self, message: Prepare | Commit, kind: type[_Answer]) -> _Answer:
        """Send a message and wait for its answer. Raises `SwapError` when the shard refuses or dies."""
        if self._end is not None:
            raise self._end
        self._answer = self._loop.create_future()
        self._client.send(message)
        answer = await self._answer
        if isinstance(answer, SwapFailed):
            raise SwapError(answer.reason)
        assert isinstance(answer, kind)
        return answer

    def _served_model(self, answer: Prepared | Committed) -> ServedModel:
        return ServedModel(self._epoch, self._target, answer.ready)

    @contextmanager
    def _holding(self) -> Iterator[None]:
        """Begin nothing on the shard within this context."""
        self._scheduler.is_holding = True
        try:
            with self._timed("hold"):
                yield
        finally:
            self._scheduler.is_holding = False
            self._wake()

    @contextmanager
    def _timed(self, phase: str) -> Iterator[None]:
        began, outer, self.phase = self._loop.time(), self.phase, phase
        try:
            yield
        finally:
            self.phase = outer
            self._phases_ms[phase] = self._phases_ms.get(phase, 0.0) + 1000 * (self._loop.time() - began)

    def _record_shard_phases(self, shard_ms: dict[str, float]) -> None:
        """Record the shard's own phases, under names distinct from ours."""
        for phase, ms in shard_ms.items():
            self._phases_ms[f"shard {phase}" if phase in self._phases_ms else phase] = ms
