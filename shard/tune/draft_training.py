"""Trains a draft head by full depth's distributions, on each of the first tokens of a draft."""

import time
from collections.abc import Sequence

import msgspec
import torch
from torch.nn import functional

from shard.tune.batches import Place, Source, load_batch
from shard.tune.draft_head import DraftHead
from shard.tune.evaluation import logits_of
from shard.tune.loss import Measured, Targets, distance, draw_candidates
from shard.tune.training import Plan, Student, Trainer, rate_share

UNROLLED = 4  # tokens of a draft that are learned
DECAY = 0.8  # weight of each token's loss over the one before
_PARTS = 1_000_000


class DraftStudent(Student, frozen=True):
    """A draft head as the only trained one, and what it reads besides states."""

    head: DraftHead
    embedding: torch.Tensor  # (V, H)

    @property
    def layers(self) -> list[int]:
        return self.head.depths


class DraftTrainer(Trainer):
    """Trains by a plan; with `seconds` at most that long, the learning rate falling with time."""

    def __init__(
        self, student: DraftStudent, sources: Sequence[Source], plan: Plan, seconds: float | None = None
    ):
        super().__init__(student, sources, plan)
        self._draft = student
        self._seconds = seconds
        self.started = time.perf_counter()  # earlier by what an interrupted training has taken

    @property
    def is_over(self) -> bool:
        """Its time is up."""
        return self._seconds is not None and time.perf_counter() - self.started >= self._seconds

    def _compare(self, places: list[Place]) -> tuple[dict[int, Measured], torch.Tensor]:
        """Statistics by the token's place in the draft, from 1, and the loss of all together."""
        student, plan = self._draft, self._plan
        batch = load_batch(self._sources, places, student.layers, student.to)
        vocab_size = student.back.shape.vocab_size
        candidates = draw_candidates(batch.targets.ids, vocab_size, plan.num_sampled, self._step_seed)
        rows = student.vocabulary.rows(candidates.ids, student.to.dtype)
        own = self._head.rows(candidates.ids, student.to.dtype)
        made: dict[int, Measured] = {}
        loss = torch.zeros((), device=student.to.device)
        embedded = embed(student, self._sources, places)
        for step, hidden in enumerate(student.head.unroll(student.back, batch.states, embedded, UNROLLED)):
            features = student.back.normed(batch.rows.select(hidden))
            if student.head.rerank is None:
                measured = distance(student.head.reduced(features), rows, batch.targets, candidates)
            else:
                measured = distance(student.head.adapted(features), own, batch.targets, candidates)
                # the proposing product follows the features, without gradients to them
                reduced = student.head.reduced(features.detach())
                loss = loss + DECAY**step * distance(reduced, rows, batch.targets, candidates).loss
            loss = loss + DECAY**step * measured.loss
            made[step + 1] = msgspec.structs.replace(measured, loss=measured.loss.detach())
        return made, loss

    def _rate_share(self) -> float:
        if self._seconds is None:
            return super()._rate_share()
        share = (time.perf_counter() - self.started) / self._seconds
        share = min(1.0, max(share, self.step / self._plan.num_steps))
        return rate_share(int(share * _PARTS), _PARTS)


def embed(student: DraftStudent, sources: Sequence[Source], places: Sequence[Place]) -> torch.Tensor:
    """The embedded tokens of passages, (B, T, H), without the last of each, padded with token 0."""
    ids = [torch.tensor(sources[source].passages[passage].token_ids[:-1]) for source, passage in places]
    padded = torch.nn.utils.rnn.pad_sequence(ids, batch_first=True).to(student.to.device)
    return functional.embedding(padded, student.embedding).to(student.to)


class Acceptance(msgspec.Struct, frozen=True):
    """Drafts at every position of held-out answers, against full depth's own choices."""

    num_drafts: int
    by_token: list[float]  # acceptance of each token, given that those before it were accepted
    accepted: float  # expected tokens of a draft


@torch.no_grad()
def acceptance_of(
    student: DraftStudent, vocabulary: torch.Tensor, sources: Sequence[Source], places: Sequence[Place]
) -> Acceptance:
    """Acceptance of greedy drafts of `UNROLLED` tokens; `vocabulary` (V, R) is the served one."""
    rows, own = vocabulary.to(student.to), student.back.head.to(student.to)
    counts = torch.zeros(UNROLLED + 1)  # drafts with at least so many tokens accepted
    for place in places:
        batch = load_batch(sources, [place], student.layers, student.to)
        embedded = embed(student, sources, [place])
        hits = [
            _hits(student, hidden, rows, own, batch.rows.position, batch.targets)
            for hidden in student.head.unroll(student.back, batch.states, embedded, UNROLLED)
        ]
        num_drafts = len(hits[0]) - UNROLLED
        if num_drafts <= 0:  # the first target follows the prompt, which drafts nothing
            continue
        alive = torch.ones(num_drafts, dtype=torch.bool, device=student.to.device)
        counts[0] += num_drafts
        for step, hit in enumerate(hits):
            alive &= hit[1 + step : 1 + step + num_drafts]
            counts[step + 1] += float(alive.sum())
    by_token = (counts[1:] / counts[:-1].clamp_min(1)).tolist()
    return Acceptance(int(counts[0]), by_token, float(counts[1:].sum() / counts[0].clamp_min(1)))


def _hits(
    student: DraftStudent,
    hidden: torch.Tensor,
    rows: torch.Tensor,
    own: torch.Tensor,
    positions: torch.Tensor,
    targets: Targets,
) -> torch.Tensor:
    """Whether the head's first choice is full depth's, (N,) bool."""
    features = student.back.normed(hidden[0, positions])
    return logits_of(student.head, features, rows, own).argmax(-1) == targets.choice
