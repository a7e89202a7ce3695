"""From logits to tokens: token rules, penalties, temperature, filters, and stateless noise.

The noise at a position is a pure function of (seed, position, token id), and the draw is Gumbel-max: the same
sequence draws the same token in any batch, on any shard, after any preemption. Reported log-probabilities are
the model's own, before temperature and filters.
"""

from collections.abc import Iterable

import msgspec
import numpy as np
import torch

from shard.engine.sequence import Sequence
from shard.engine.token_rules import TokenRules
from shard.messages import Sampling, TokenOutput
from shard.ops.plain import PlainOps


class Draw(msgspec.Struct, frozen=True):
    """One token to be drawn: after the first `num_tokens` of a sequence, at an exit layer."""

    sequence: Sequence
    num_tokens: int
    exit_layer: int
    confidence: float | None = None

    @property
    def token_ids(self) -> list[int]:
        """The context that penalties look at."""
        return self.sequence.token_ids[: self.num_tokens]

    @property
    def is_forced(self) -> bool:
        """The sequence's grammar leaves one token only."""
        constraint = self.sequence.constraint
        return (
            constraint is not None
            and constraint.forced_token(self.sequence.token_ids, self.num_tokens) is not None
        )

    def permits(self, token_id: int) -> bool:
        """The sequence's grammar, if it has one, lets this token be drawn."""
        constraint = self.sequence.constraint
        return constraint is None or constraint.permits(self.sequence.token_ids, self.num_tokens, token_id)


LOWEST = torch.finfo(torch.float32).min
MASK_64 = (1 << 64) - 1


class Sampler:
    """Chooses tokens for the rows of a batch."""

    def __init__(self, ops: PlainOps, device: torch.device, eos_token_ids: Iterable[int] = ()):
        self.rules = TokenRules(eos_token_ids, device)
        self._ops = ops
        self._device = device

    def choose(self, logits: torch.Tensor, draws: list[Draw]) -> list[TokenOutput]:
        """One token for each row of logits (B, V)."""
        chosen = self._draw(logits, draws)
        logprobs = logits.gather(1, chosen[:, None]).float()[:, 0] - self._ops.log_sum_exp(logits)
        return [
            TokenOutput(token, 0.0, 0)
            if draw.is_forced
            else TokenOutput(
                token,
                min(logprob, 0.0),
                draw.exit_layer,
                draw.confidence,
                self._top(logits[i], draw.sequence.sampling),
            )
            for i, (token, logprob, draw) in enumerate(
                zip(chosen.tolist(), logprobs.tolist(), draws, strict=True)
            )
        ]

    def score(
        self, logits: torch.Tensor, token_ids: list[int], sampling: Sampling, exit_layer: int
    ) -> list[TokenOutput]:
        """The log-probability of each given token (N,) under its position's logits (N, V)."""
        ids = torch.tensor(token_ids, device=self._device)
        logprobs = logits.gather(1, ids[:, None]).float()[:, 0] - self._ops.log_sum_exp(logits)
        return [
            TokenOutput(token, min(logprob, 0.0), exit_layer, None, self._top(row, sampling))
            for token, logprob, row in zip(token_ids, logprobs.tolist(), logits, strict=True)
        ]

    def _draw(self, logits: torch.Tensor, draws: list[Draw]) -> torch.Tensor:
        """Token ids (B,). Only rows whose scores change before the draw go through float32 copies.

        A grammar alone changes scores only where the token drawn is illegal: a legal token drawn among all
        tokens is also the one drawn among the legal ones.
        """
        temperatures = [draw.sequence.sampling.temperature for draw in draws]
        chosen = self._choose(logits, draws, temperatures)
        changed = [i for i, draw in enumerate(draws) if self._changes_scores(draw)]
        changed += self._illegal(chosen, draws, set(changed))
        if changed:
            some = [draws[i] for i in changed]
            scores = self._changed_scores(logits[changed].float(), some)
            chosen[changed] = self._choose(scores, some, [1.0 if temperatures[i] else 0.0 for i in changed])
        return chosen

    def _choose(self, scores: torch.Tensor, draws: list[Draw], temperatures: list[float]) -> torch.Tensor:
        if not any(temperatures):
            return self._ops.greedy(scores)
        keys = [noise_key(draw.sequence.sampling.seed, draw.num_tokens) for draw in draws]
        return self._ops.choose(scores, self._floats(temperatures), torch.tensor(keys, device=self._device))

    def _changes_scores(self, draw: Draw) -> bool:
        sequence = draw.sequence
        return changes_scores(sequence.sampling) or self.rules.change_scores(sequence, draw.num_tokens)

    def _illegal(self, chosen: torch.Tensor, draws: list[Draw], others: set[int]) -> list[int]:
        """Rows outside `others` whose grammar does not permit the token drawn."""
        constrained = [
            i for i, d in enumerate(draws) if d.sequence.constraint is not None and i not in others
        ]
        if not constrained:
            return []
        ids = chosen.tolist()
        return [i for i in constrained if not draws[i].permits(ids[i])]

    def _changed_scores(self, scores: torch.Tensor, draws: list[Draw]) -> torch.Tensor:
        """Rules, penalties, temperature and filters, in TGI's order and vLLM's, on float32 scores (B, V)."""
        samplings = [draw.sequence.sampling for draw in draws]
        for row, draw in zip(scores, draws, strict=True):
            if self.rules.bind(draw.sequence, draw.num_tokens):
                self.rules.apply(row, draw.sequence, draw.num_tokens)
            penalise(row, draw.token_ids, draw.sequence)
        scores /= self._floats([sampling.temperature or 1.0 for sampling in samplings])[:, None]
        if any(sampling.min_p for sampling in samplings):
            keep_near_best(scores, self._floats([sampling.min_p for sampling in samplings]))
        if any(sampling.top_k or sampling.top_p < 1 for sampling in samplings):
            counts = torch.tensor([sampling.top_k for sampling in samplings], device=self._device)
            self._ops.keep_top(scores, counts, self._floats([sampling.top_p for sampling in samplings]))
        for row, sampling in zip(scores, samplings, strict=True):
            if sampling.typical_p < 1:
                keep_typical(row, sampling.typical_p)
        return scores

    def _top(self, logits: torch.Tensor, sampling: Sampling) -> tuple[tuple[int, float], ...]:
        """The likeliest tokens at one position, from its logits (V,)."""
        if not sampling.num_top_tokens:
            return ()
        logprobs, ids = torch.log_softmax(logits.float(), dim=-1).topk(sampling.num_top_tokens)
        return tuple(zip(ids.tolist(), logprobs.tolist(), strict=True))

    def _floats(self, values: list[float]) -> torch.Tensor:
        return torch.tensor(values, dtype=torch.float32, device=self._device)


def changes_scores(sampling: Sampling) -> bool:
    """True when more than token rules and a temperature stands between the logits and the draw."""
    filters = sampling.top_k > 0 or sampling.top_p < 1 or sampling.typical_p < 1 or sampling.min_p > 0
    penalties = sampling.frequency_penalty or sampling.presence_penalty or sampling.repetition_penalty != 1
    return bool(penalties) or (filters and sampling.temperature > 0)


def penalise(scores: torch.Tensor, token_ids: list[int], sequence: Sequence) -> None:
    """In place on (V,): repetition over all tokens (CTRL, Keskar et al. 2019), the rest over the answer."""
    sampling, device = sequence.sampling, scores.device
    if sampling.repetition_penalty != 1:
        seen = torch.from_numpy(np.unique(token_ids)).to(device)
        values = scores[seen]
        penalty = sampling.repetition_penalty
        scores[seen] = torch.where(values < 0, values * penalty, values / penalty)
    if sampling.frequency_penalty or sampling.presence_penalty:
        answer = token_ids[sequence.num_prompt_tokens :]
        ids, counts = np.unique(np.array(answer, dtype=np.int64), return_counts=True)
        costs = sampling.frequency_penalty * counts + sampling.presence_penalty
        scores[torch.from_numpy(ids).to(device)] -= torch.from_numpy(costs).to(device, torch.float32)


def keep_near_best(scores: torch.Tensor, shares: torch.Tensor) -> None:
    """In place on (B, V): min-p (Nguyen et al. 2024), tokens at least a share (B,) as likely as the best one.

    As in vLLM, of the scores at their temperature and before top-k and top-p.
    """
    best = scores.amax(dim=-1, keepdim=True)
    scores.masked_fill_(scores < best + shares.log()[:, None], LOWEST)


def keep_typical(scores: torch.Tensor, mass: float) -> None:
    """In place on (V,): locally typical sampling (Meister et al. 2022), keeping at least `mass`."""
    logprobs = torch.log_softmax(scores, dim=-1)
    probabilities = logprobs.exp()
    surprise = (-logprobs + (probabilities * logprobs).nansum()).abs()
    order = surprise.argsort()
    before = probabilities[order].cumsum(0) - probabilities[order]
    scores[order] = scores[order].masked_fill(before >= mass, LOWEST)


def noise_key(seed: int, position: int) -> tuple[int, int]:
    """Two 32-bit words that stand for (seed, position): SplitMix64's output function over both."""
    state = (seed * 0x9E3779B97F4A7C15 + position * 0xD1B54A32D192ED03 + 0x632BE59BD9B4E019) & MASK_64
    state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & MASK_64
    state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & MASK_64
    state ^= state >> 31
    return state & 0xFFFFFFFF, state >> 32
