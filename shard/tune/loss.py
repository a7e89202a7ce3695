"""The training loss: KL of an exit's distribution to full depth's, at a cost independent of the vocabulary.

Over all of SmolLM2's 49,152 tokens this loss would cost more than the rest of a step. So the normaliser is
estimated: on the tokens that full depth finds likely anywhere in the batch, and on a uniform sample of the
others (sampled softmax, Bengio and Senecal 2008).
"""

from typing import Any

import msgspec
import torch

ROWS = 512  # rows whose logits are held at once
MAX_REST_RATIO = 20.0  # of the mass outside full depth's likeliest tokens; bounds a gradient
TINY_MASS = 1e-6
TINY_PROBABILITY = 1e-20


class Targets(msgspec.Struct, frozen=True):
    """Full depth's likeliest tokens at N positions."""

    ids: torch.Tensor  # (N, K) int64, best first
    logprobs: torch.Tensor  # (N, K)

    @property
    def choice(self) -> torch.Tensor:
        """Full depth's greedy choice, (N,)."""
        return self.ids[:, 0]


class Candidates(msgspec.Struct, frozen=True):
    """The part of the vocabulary that a batch is compared on."""

    ids: torch.Tensor  # (M,) int64, rising within the likely and within the sampled
    correction: torch.Tensor  # (M,) added to logits: a sampled token represents others
    columns: torch.Tensor  # (N, K): where the targets' ids are among `ids`


class Measured(msgspec.Struct, frozen=True):
    """Statistics of one batch, for the progress bar."""

    loss: torch.Tensor
    agreement: torch.Tensor  # share of all positions with full depth's choice
    agreement_of_surest: torch.Tensor  # share in the half of highest top probability


def draw_candidates(ids: torch.Tensor, vocab_size: int, num_sampled: int, seed: int) -> Candidates:
    """Every token among `ids` (N, K), and `num_sampled` of the others, or all of those if fewer."""
    device = ids.device
    ids = ids.cpu()
    is_likely = torch.zeros(vocab_size, dtype=torch.bool)
    is_likely[ids.flatten()] = True
    likely = is_likely.nonzero()[:, 0]
    others = (~is_likely).nonzero()[:, 0]
    correction = torch.zeros(len(likely) + min(num_sampled, len(others)))
    if num_sampled < len(others):
        generator = torch.Generator().manual_seed(seed)
        correction[len(likely) :] = torch.log(torch.tensor(len(others) / num_sampled))
        others = others[torch.randperm(len(others), generator=generator)[:num_sampled]].sort().values
    place = torch.full((vocab_size,), -1, dtype=torch.int64)
    place[likely] = torch.arange(len(likely))
    return Candidates(torch.cat((likely, others)).to(device), correction.to(device), place[ids].to(device))


class _Seen(msgspec.Struct, frozen=True):
    """Some rows' loss and statistics."""

    loss: torch.Tensor  # summed over rows
    hits: torch.Tensor  # (rows,) bool: the first choice is full depth's
    confidence: torch.Tensor  # (rows,) the top probability
    gradient: torch.Tensor  # (rows, M) of the loss


def _compare(logits: torch.Tensor, columns: torch.Tensor, known: torch.Tensor) -> _Seen:
    """KL of K + 1 outcomes, the last being `any other token`. Consumes the logits.

    With q the exit's distribution, p full depth's and r the masses outside its likeliest tokens, the gradient
    of a logit is q - p for those K tokens, and q (1 - r_p / r_q) for all others.
    """
    hits = logits.amax(-1) == logits.gather(1, columns[:, :1])[:, 0]
    q = logits.softmax(-1)
    confidence = q.amax(-1)
    p, own = known.exp(), q.gather(1, columns)
    rest_p = (1 - p.sum(-1, keepdim=True)).clamp_min(TINY_MASS)
    rest_q = (1 - own.sum(-1, keepdim=True)).clamp_min(TINY_MASS)
    rest = rest_p / rest_q
    loss = (p * (known - own.clamp_min(TINY_PROBABILITY).log())).sum() + (rest_p * rest.log()).sum()
    gradient = q.mul_(1 - rest.clamp_max(MAX_REST_RATIO)).scatter_(1, columns, own - p)
    return _Seen(loss, hits, confidence, gradient)


class _Distance(torch.autograd.Function):
    """The mean of `_compare` over rows, some at a time; gradients are computed in the forward pass."""

    @staticmethod
    def forward(
        context: Any, reduced: torch.Tensor, weight: torch.Tensor, targets: Targets, candidates: Candidates
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        grad_reduced = torch.empty_like(reduced)
        grad_weight = torch.zeros_like(weight, dtype=torch.float32) if weight.requires_grad else None
        parts = []
        for first in range(0, len(reduced), ROWS):
            rows = slice(first, first + ROWS)
            logits = (reduced[rows] @ weight.t()).float().add_(candidates.correction)
            seen = _compare(logits, candidates.columns[rows], targets.logprobs[rows].float())
            gradient = (seen.gradient / len(reduced)).to(reduced.dtype)
            grad_reduced[rows] = gradient @ weight
            if grad_weight is not None:
                grad_weight += (gradient.t() @ reduced[rows]).float()
            parts.append((seen.loss, seen.hits, seen.confidence))
        losses, hits, confidence = zip(*parts, strict=True)
        context.grad_reduced, context.grad_weight = grad_reduced, grad_weight
        outcome = torch.cat(hits), torch.cat(confidence)
        context.mark_non_differentiable(*outcome)
        return torch.stack(losses).sum() / len(reduced), *outcome

    @staticmethod
    def backward(context: Any, *grads: torch.Tensor) -> Any:
        scale = grads[0]
        weight = None if context.grad_weight is None else context.grad_weight * scale
        return context.grad_reduced * scale.to(context.grad_reduced.dtype), weight, None, None


def distance(reduced: torch.Tensor, rows: torch.Tensor, targets: Targets, candidates: Candidates) -> Measured:
    """Mean KL to full depth and the share of equal choices.

    `reduced` (N, R) is multiplied with the candidates' rows (M, R) of the vocabulary: R is the rank of a
    low-rank head, or the hidden size.
    """
    loss, hits, confidence = _Distance.apply(reduced, rows, targets, candidates)  # type: ignore[no-untyped-call]
    surest = hits[confidence.topk((len(hits) + 1) // 2).indices]
    return Measured(loss, hits.float().mean(), surest.float().mean())
