"""Scores finished answers at full depth in a shard's spare time.

Scoring has no client. It starts last, takes a small part of a step, and is dropped first: when a request
waits, when the shard needs its blocks, drains or dies. Pure.
"""

import zlib
from collections import deque

import msgspec

from router.catalog.served_model import ServedModel
from router.scheduling.request import Request
from shard.messages import NewSequence, Score, StepOutput, Work

MAX_WAITING = 16  # answers; of more, the oldest are forgotten
_SHARE_OF_STEP = 8  # at most one in this many tokens of a step
_FIRST_ID = 1 << 40  # above every request's: a shard preempts the highest id first


class ShadowScore:
    """The scoring of one finished answer."""

    def __init__(self, request: Request, served_model: ServedModel):
        self.request = request
        self.served_model = served_model
        self.id = _FIRST_ID + request.id
        self.num_asked_tokens = 0  # asked of the shard so far
        self.scores: list[Score] = []

    @property
    def num_tokens(self) -> int:
        return self.request.num_tokens

    @property
    def is_complete(self) -> bool:
        return len(self.scores) == len(self.request.outputs)

    @property
    def sequence(self) -> NewSequence:
        """The sequence to score: the answer as part of the prompt, with the request's seed."""
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
            grammar=request.grammar,
        )


class ScoreQueue:
    """A sample of finished answers that wait to be scored. Shared by the shards."""

    def __init__(self, rate: float = 0.0):
        self._rate = rate
        self.waiting: deque[Request] = deque(maxlen=MAX_WAITING)

    def offer(self, request: Request) -> bool:
        """Queue a finished request if it is in the sample, which is the same in every run.

        Answers written by several models are not scored.
        """
        if not request.outputs or request.written_by is None or not is_chosen(request.id, self._rate):
            return False
        self.waiting.append(request)
        return True

    def close(self) -> None:
        """Forget all answers, and take no more."""
        self._rate = 0.0
        self.waiting.clear()


def is_chosen(request_id: int, rate: float) -> bool:
    return zlib.crc32(request_id.to_bytes(8)) < rate * 2**32


def scorer_for(served_model: ServedModel, score_queue: ScoreQueue | None) -> "ShadowScorer | None":
    """A scorer; None without a queue, or if the shard cannot compute full depth."""
    return (
        ShadowScorer(score_queue, served_model)
        if score_queue is not None and served_model.ready.can_score
        else None
    )


class ShadowScorer:
    """Scores, one at a time, answers that one shard's newest model wrote.

    Layers that the model has not loaded are streamed from their files, over many steps and in little of
    each: the shard is asked until it is done, also beside a full batch.
    """

    def __init__(self, score_queue: ScoreQueue, served_model: ServedModel):
        self._score_queue = score_queue
        self._served_model = served_model
        self._score: ShadowScore | None = None

    @property
    def is_patient(self) -> bool:
        """Scoring takes a small fixed share of the shard's time, so waiting requests do not stop it."""
        return not self._served_model.is_whole

    def begin(self, num_free_blocks: int) -> list[NewSequence]:
        """Begin scoring the next answer, if none is under way and half of the free blocks hold it."""
        if self._score is not None:
            return []
        request = self._next()
        if request is None or self._blocks(request) > num_free_blocks // 2:
            return []
        self._score_queue.waiting.remove(request)
        self._score = ShadowScore(request, self._served_model)
        return [self._score.sequence]

    def _next(self) -> Request | None:
        """The first queued answer of this model. Answers larger than half of all blocks are dropped."""
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
        """Work on the answer in a step that has `num_left` tokens left.

        Small also on an idle shard: a request may arrive while the step runs.
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
        """Stop scoring; returns (id, attempt) of the sequences that the shard is to forget."""
        score, self._score = self._score, None
        return [] if score is None else [(score.id, 0)]

    def update(self, output: StepOutput) -> ShadowScore | None:
        """Take a step's scores; returns the answer when its scores are complete."""
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
