"""Reading finished answers again at full depth, in what users leave over of a shard.

A reading has no client. It is the last to start, takes a small part of a step, and is the first to go: it is
dropped when a request waits, when the shard needs its blocks, drains or dies. Pure.
"""

import zlib
from collections import deque

import msgspec

from router.catalog.served_model import Generation
from router.scheduling.request import Request
from shard.messages import NewSequence, Score, StepOutput, Work

MAX_WAITING = 16  # answers; of more, the oldest are forgotten
_SHARE_OF_STEP = 8  # one in so many tokens of a step may be read
_FIRST_ID = 1 << 40  # above every request's: a shard takes blocks from the highest id first


class Reading:
    """One finished answer, as it is read again."""

    def __init__(self, request: Request, generation: Generation):
        self.request = request
        self.generation = generation
        self.id = _FIRST_ID + request.id
        self.num_asked_tokens = 0  # of the shard, so far
        self.scores: list[Score] = []

    @property
    def num_tokens(self) -> int:
        return self.request.num_tokens

    @property
    def is_complete(self) -> bool:
        return len(self.scores) == len(self.request.outputs)

    @property
    def sequence(self) -> NewSequence:
        """The answer as part of the prompt, drawn for with the noise it was drawn with."""
        request = self.request
        sampling = msgspec.structs.replace(request.sampling, num_top_tokens=0, prompt_logprobs=False)
        return NewSequence(
            self.id,
            0,
            request.token_ids,
            request.num_prompt_tokens,
            max_new_tokens=0,
            ignore_eos=request.spec.ignore_eos,
            sampling=sampling,
            scores=True,
            generation=self.generation.ticket,
        )


class Backlog:
    """Answers that wait to be read, a sampled share of all. Shared by the shards."""

    def __init__(self, rate: float = 0.0):
        self._rate = rate
        self.waiting: deque[Request] = deque(maxlen=MAX_WAITING)

    def offer(self, request: Request) -> bool:
        """Take a finished request if it is among the share; the same ones in every run.

        An answer of several models is nobody's to judge.
        """
        if not request.outputs or request.written_by is None or not is_chosen(request.id, self._rate):
            return False
        self.waiting.append(request)
        return True

    def close(self) -> None:
        """Forget all, and take nothing more."""
        self._rate = 0.0
        self.waiting.clear()


def is_chosen(request_id: int, rate: float) -> bool:
    return zlib.crc32(request_id.to_bytes(8)) < rate * 2**32


def reader_for(generation: Generation, backlog: Backlog | None) -> "Reader | None":
    """None without a backlog, or where the shard cannot say what the full model would."""
    return Reader(backlog, generation) if backlog is not None and generation.ready.can_score else None


class Reader:
    """One shard's readings, one at a time: of what the model of its generation wrote.

    Layers that the generation has not loaded are read from their files, which takes long and little of any
    step: the shard is asked to go on until it is done, also beside a batch that is full.
    """

    def __init__(self, backlog: Backlog, generation: Generation):
        self._backlog = backlog
        self._generation = generation
        self._reading: Reading | None = None

    @property
    def is_patient(self) -> bool:
        """A reading takes a fixed small share of the shard's time, whoever waits."""
        return not self._generation.is_whole

    def begin(self, num_free_blocks: int) -> list[NewSequence]:
        """The next answer, if none is being read and half of the free blocks hold it."""
        if self._reading is not None:
            return []
        request = self._next()
        if request is None or self._blocks(request) > num_free_blocks // 2:
            return []
        self._backlog.waiting.remove(request)
        self._reading = Reading(request, self._generation)
        return [self._reading.sequence]

    def _next(self) -> Request | None:
        """The first answer that its model wrote. What half of all blocks cannot hold is never read."""
        waiting = self._backlog.waiting
        for request in [request for request in waiting if self._is_own(request)]:
            if self._blocks(request) <= self._generation.ready.num_blocks // 2:
                return request
            waiting.remove(request)
        return None

    def _is_own(self, request: Request) -> bool:
        author = request.written_by
        return author is not None and author.model == self._generation.target.name

    def ask(self, num_left: int, max_batch_tokens: int) -> list[Work]:
        """What to compute of the answer being read, in a step that has `num_left` tokens left.

        Little also where nobody is served: a request may arrive while the step runs.
        """
        reading = self._reading
        if reading is None:
            return []
        most = min(num_left, max(1, max_batch_tokens // _SHARE_OF_STEP))
        num_tokens = min(most, reading.num_tokens - reading.num_asked_tokens)
        reading.num_asked_tokens += num_tokens
        if not num_tokens and not self.is_patient:
            return []
        return [Work(reading.id, 0, max(1, num_tokens))]

    def give_up(self) -> list[tuple[int, int]]:
        """Stop reading; (id, attempt) of what the shard is to forget."""
        reading, self._reading = self._reading, None
        return [] if reading is None else [(reading.id, 0)]

    def update(self, output: StepOutput) -> Reading | None:
        """Take the scores that a step made; the reading, if it is complete with them."""
        reading = self._reading
        if reading is None:
            return None
        if (reading.id, 0) in output.preempted:
            self._reading = None
        made = next((made for made in output.outputs if made.id == reading.id), None)
        if made is None:
            return None
        reading.scores += made.scores
        if made.finish is None:
            return None
        self._reading = None
        return reading if reading.is_complete else None

    def _blocks(self, request: Request) -> int:
        return -(-request.num_tokens // self._generation.ready.block_size)
