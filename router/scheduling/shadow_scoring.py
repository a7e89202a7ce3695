"""Reading finished answers again at full depth, in what users leave over of a shard.

Such scoring has no client. It is the last to start, takes a small part of a step, and is the first to go: it
is dropped when a request waits, when the shard needs its blocks, drains or dies. Pure.
"""

import zlib
from collections import deque

import msgspec

from router.catalog.served_model import ServedModel
from router.scheduling.request import Request
from shard.messages import NewSequence, Score, StepOutput, Work

MAX_WAITING = 16  # answers; of more, the oldest are forgotten
_SHARE_OF_STEP = 8  # one in so many tokens of a step may be read
_FIRST_ID = 1 << 40  # above every request's: a shard takes blocks from the highest id first


class ShadowScore:
    """One finished answer, as it is read again."""

    def __init__(self, request: Request, served_model: ServedModel):
        self.request = request
        self.served_model = served_model
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
            epoch=self.served_model.epoch,
        )


class ScoreQueue:
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


def scorer_for(served_model: ServedModel, score_queue: ScoreQueue | None) -> "ShadowScorer | None":
    """None without a queue, or where the shard cannot say what the full model would."""
    return (
        ShadowScorer(score_queue, served_model)
        if score_queue is not None and served_model.ready.can_score
        else None
    )


class ShadowScorer:
    """One shard's scoring, one answer at a time, of what its newest model wrote.

    Layers that the model has not loaded are read from their files, which takes long and little of any
    step: the shard is asked to go on until it is done, also beside a batch that is full.
    """

    def __init__(self, score_queue: ScoreQueue, served_model: ServedModel):
        self._score_queue = score_queue
        self._served_model = served_model
        self._score: ShadowScore | None = None

    @property
    def is_patient(self) -> bool:
        """Scoring takes a fixed small share of the shard's time, whatever waits."""
        return not self._served_model.is_whole

    def begin(self, num_free_blocks: int) -> list[NewSequence]:
        """The next answer, if none is being read and half of the free blocks hold it."""
        if self._score is not None:
            return []
        request = self._next()
        if request is None or self._blocks(request) > num_free_blocks // 2:
            return []
        self._score_queue.waiting.remove(request)
        self._score = ShadowScore(request, self._served_model)
        return [self._score.sequence]

    def _next(self) -> Request | None:
        """The first answer that its model wrote. What half of all blocks cannot hold is never read."""
        waiting = self._score_queue.waiting
        for request in [request for request in waiting if self._is_own(request)]:
            if self._blocks(request) <= self._served_model.ready.num_blocks // 2:
                return request
            waiting.remove(request)
        return None

    def _is_own(self, request: Request) -> bool:
        author = request.written_by
        return author is not None and author.model == self._served_model.target.name

    def ask(self, num_left: int, max_batch_tokens: int) -> list[Work]:
        """What to compute of the answer being read, in a step that has `num_left` tokens left.

        Little also where nobody is served: a request may arrive while the step runs.
        """
        score = self._score
        if score is None:
            return []
        most = min(num_left, max(1, max_batch_tokens // _SHARE_OF_STEP))
        num_tokens = min(most, score.num_tokens - score.num_asked_tokens)
        score.num_asked_tokens += num_tokens
        if not num_tokens and not self.is_patient:
            return []
        return [Work(score.id, 0, max(1, num_tokens))]

    def give_up(self) -> list[tuple[int, int]]:
        """Stop reading; (id, attempt) of what the shard is to forget."""
        score, self._score = self._score, None
        return [] if score is None else [(score.id, 0)]

    def update(self, output: StepOutput) -> ShadowScore | None:
        """Take the scores that a step made; the answer, if it is complete with them."""
        score = self._score
        if score is None:
            return None
        if (score.id, 0) in output.preempted:
            self._score = None
        made = next((made for made in output.outputs if made.id == score.id), None)
        if made is None:
            return None
        score.scores += made.scores
        if made.finish is None:
            return None
        self._score = None
        return score if score.is_complete else None

    def _blocks(self, request: Request) -> int:
        return -(-request.num_tokens // self._served_model.ready.block_size)
