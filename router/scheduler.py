"""Who runs on one shard: waiting requests become running ones, running ones become the wishes of a step.

Pure and synchronous: no clock, no socket, no event loop. A step is formed while the one before it still
runs, so every decision looks at what will be true when that is done: what is in flight counts as computed.
"""

import math
from collections import deque
from collections.abc import Iterable

import msgspec

from router.batch import Batch, new_sequence
from router.request import Request
from router.scoring import Reader, Reading
from router.waiting import Lane, WaitingQueue
from shard.messages import FinishReason, NewSequence, Step, StepOutput, TokenOutput, Work

MAX_IN_FLIGHT = 2  # steps: one runs, the next one waits on the shard
MAX_SHARD_DEATHS = 2  # a request present at so many is not tried again
_PREFILL_SHARE = 4  # prefill gets at least one in so many tokens of a step


class Limits(msgspec.Struct, frozen=True):
    """What one shard can take."""

    max_batch_size: int  # sequences
    max_batch_tokens: int  # computed in a step
    block_size: int  # tokens
    num_blocks: int


class Share(msgspec.Struct, frozen=True):
    """What one shard may take from the waiting queue: these lanes, while it has no more work than this."""

    max_outstanding_tokens: float = math.inf
    lanes: tuple[Lane, ...] = tuple(Lane)


EVERYTHING = Share()


class Delivery(msgspec.Struct, frozen=True):
    """What a step made for one request."""

    request: Request
    tokens: list[TokenOutput]
    prompt: list[TokenOutput]
    finish: FinishReason | None


class Update(msgspec.Struct, frozen=True):
    """What came of a step. Preempted requests are back in the queue already."""

    deliveries: list[Delivery]
    preempted: list[Request]
    read: Reading | None = None  # a finished answer, read again to its end


class Scheduler:
    """The batch of one life of one shard. The waiting queue is shared with the other shards' schedulers.

    With a `reader`, what users leave over goes to reading finished answers again.
    """

    def __init__(self, shard: int, limits: Limits, queue: WaitingQueue, reader: Reader | None = None):
        self.shard = shard
        self.limits = limits
        self.num_outstanding_tokens = 0  # to compute, and expected to be generated
        self.num_free_blocks = limits.num_blocks  # as of the last output
        self._num_unclaimed_blocks = limits.num_blocks  # free, and not needed by prompts in the batch
        self._is_trying = False  # a suspect in the step being formed: no two are tried in one step
        self._queue = queue
        self._reader = reader
        self._running: dict[int, Request] = {}
        self._drops: list[tuple[int, int]] = []
        self._in_flight: deque[Step] = deque()
        self._num_steps = 0

    @property
    def num_running(self) -> int:
        return len(self._running)

    @property
    def reads(self) -> bool:
        """Has all layers, and can say what the full model would."""
        return self._reader is not None

    @property
    def num_in_flight(self) -> int:
        """Steps that the shard has not answered."""
        return len(self._in_flight)

    @property
    def has_slot(self) -> bool:
        """A step may be sent now; else the next output will make place for one."""
        return len(self._in_flight) < MAX_IN_FLIGHT

    def can_start(self, share: Share = EVERYTHING) -> bool:
        """There is a waiting request that the next step may begin with."""
        return self._next(share) is not None

    def schedule(self, now: float, share: Share = EVERYTHING) -> Step | None:
        """The next step, or None when nothing is to be asked of the shard now. O(batch), however many wait.

        Decoding goes first, so that streams keep their pace, but leaves a share to prefill. A prompt longer
        than a step gives half of prefill's share to the others while there are any.
        """
        if not self.has_slot:
            return None
        decoding, prefilling = self._take_stock()
        batch = Batch(self.limits.max_batch_tokens)
        wants_prefill = bool(prefilling) or self._next(share) is not None
        turn = batch.num_left - wants_prefill * -(-batch.num_left // _PREFILL_SHARE)
        batch.fill(decoding[:turn])
        long, short = _split(prefilling, batch.num_left)
        if long:
            batch.add(long[0], batch.num_left - batch.num_left // 2)
        batch.fill(short)
        new = self._start(batch, now, share)
        batch.fill(long)
        batch.fill(decoding[turn:])
        self._rotate(decoding[:turn], decoding[turn:])
        reading, begun = self._read(batch.num_left, share)
        return self._form(batch, reading, new + begun)

    def update(self, output: StepOutput) -> Update:
        """Enter the answer to the oldest step in flight. Tokens of ended or stale attempts are left out.

        Raises `ValueError` when it answers another step.
        """
        if not self._in_flight or self._in_flight[0].number != output.number:
            raise ValueError(f"step {output.number} was answered out of turn")
        for work in self._in_flight.popleft().work:
            request = self._find(work.id, work.attempt)
            if request is not None:
                request.num_in_flight_tokens -= work.num_tokens
        self.num_free_blocks = output.num_free_blocks
        deliveries = []
        for made in output.outputs:
            request = self._find(made.id, made.attempt)
            if request is not None:
                request.num_computed_tokens = made.num_computed_tokens
                deliveries.append(Delivery(request, made.tokens, made.prompt, made.finish))
                if made.finish is not None:
                    del self._running[made.id]
        read = self._reader.update(output) if self._reader is not None else None
        return Update(deliveries, self._return_preempted(output.preempted), read)

    def drop(self, request: Request) -> bool:
        """Take out a request that was aborted or ended by what only the router sees. False if not running."""
        if self._running.pop(request.id, None) is None:
            return False
        self._drops.append((request.id, request.attempt))
        return True

    def lose(self) -> list[Request]:
        """The shard has died. Its requests go back to the queue, but for those condemned, which are returned.

        What the shard died of was in the oldest step that it has not answered. If a suspect was tried there,
        the blame is the suspect's alone: whom it takes along survives.
        """
        present = self._in_flight[0].work if self._in_flight else []
        blamed = [request for work in present if (request := self._find(work.id, work.attempt)) is not None]
        for request in [request for request in blamed if request.is_suspect] or blamed:
            request.note_shard_death()
        running = list(self._running.values())
        self._running.clear()
        self._put_back(request for request in running if request.num_shard_deaths < MAX_SHARD_DEATHS)
        return [request for request in running if request.num_shard_deaths >= MAX_SHARD_DEATHS]

    def _take_stock(self) -> tuple[list[Request], list[Request]]:
        """Running requests that want work: those one token behind, and those with more to compute."""
        decoding: list[Request] = []
        prefilling: list[Request] = []
        num_outstanding, num_claimed = 0, 0
        self._is_trying = False
        for request in self._running.values():
            num_pending = request.num_pending_tokens
            num_outstanding += request.num_outstanding_tokens
            num_claimed += self._num_blocks(request.num_tokens)
            num_claimed -= self._num_blocks(request.num_computed_tokens)
            self._is_trying |= num_pending > 0 and request.is_suspect
            if request.wants_work:
                (decoding if num_pending <= 1 else prefilling).append(request)
        self.num_outstanding_tokens = num_outstanding
        self._num_unclaimed_blocks = self.num_free_blocks - num_claimed
        return decoding, prefilling

    def _start(self, batch: Batch, now: float, share: Share) -> list[NewSequence]:
        """Move waiting requests into the batch while there is room for them and work left to give."""
        new = []
        while batch.num_left > 0 and (request := self._next(share)) is not None:
            self._queue.take(request)
            self._running[request.id] = request
            self._num_unclaimed_blocks -= self._num_blocks(request.num_tokens)
            self.num_outstanding_tokens += request.num_outstanding_tokens
            self._is_trying |= request.is_suspect
            request.start(self.shard, now)
            new.append(new_sequence(request))
            batch.fill([request])
        return new

    def _next(self, share: Share) -> Request | None:
        """The waiting request that may start now."""
        is_full = len(self._running) >= self.limits.max_batch_size
        if is_full or self.num_outstanding_tokens > share.max_outstanding_tokens:
            return None
        request = self._queue.head(share.lanes)
        if request is not None and request.is_suspect and self._is_trying:
            request = self._queue.head([lane for lane in share.lanes if lane is not Lane.SUSPECT])
        return request if request is not None and self._fits(request) else None

    def _fits(self, request: Request) -> bool:
        """Optimistic: its tokens have blocks, and every running request may grow by one block more.

        When answers grow further the shard preempts the youngest. An empty batch takes anything: no count of
        free blocks that is older than the last drops may keep it empty.
        """
        num_needed = self._num_blocks(request.num_tokens) + len(self._running) + 1
        return not self._running or num_needed <= self._num_unclaimed_blocks

    def _rotate(self, served: list[Request], passed_over: list[Request]) -> None:
        """Where a step cannot hold every stream, those passed over come first in the next one."""
        for request in served if passed_over else []:
            self._running[request.id] = self._running.pop(request.id)

    def _read(self, num_left: int, share: Share) -> tuple[list[Work], list[NewSequence]]:
        """Go on with reading a finished answer again, unless a request waits."""
        if self._reader is None:
            return [], []
        if self._queue or Lane.FRESH not in share.lanes:
            self._drops += self._reader.give_up()
            return [], []
        if num_left == 0 or len(self._running) >= self.limits.max_batch_size:
            return [], []
        begun = self._reader.begin(self._num_unclaimed_blocks)
        return self._reader.ask(num_left, self.limits.max_batch_tokens), begun

    def _form(self, batch: Batch, reading: list[Work], new: list[NewSequence]) -> Step | None:
        if not batch.wishes and not reading and not self._drops:
            return None
        work = [Work(request.id, request.attempt, count) for request, count in batch.wishes.items()]
        work += reading
        self._num_steps += 1
        step = Step(self._num_steps, work, new, self._drops)
        self._drops = []
        self._in_flight.append(step)
        return step

    def _return_preempted(self, preempted: list[tuple[int, int]]) -> list[Request]:
        requests = [self._find(id, attempt) for id, attempt in preempted]
        returned = [request for request in requests if request is not None]
        for request in returned:
            del self._running[request.id]
            request.num_preemptions += 1
        self._put_back(returned)
        return returned

    def _put_back(self, requests: Iterable[Request]) -> None:
        for request in requests:
            request.start_over()
            self._queue.add(request)

    def _find(self, id: int, attempt: int) -> Request | None:
        request = self._running.get(id)
        return request if request is not None and request.attempt == attempt else None

    def _num_blocks(self, num_tokens: int) -> int:
        return -(-num_tokens // self.limits.block_size)


def _split(prefilling: list[Request], num_tokens: int) -> tuple[list[Request], list[Request]]:
    """Those with more to compute than fits in one step, and the others."""
    long = [request for request in prefilling if request.num_pending_tokens > num_tokens]
    return long, [request for request in prefilling if request.num_pending_tokens <= num_tokens]
