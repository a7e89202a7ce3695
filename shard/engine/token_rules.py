"""A request's rules on single tokens: allowed, banned, banned for now, biased.

Applied to logits before anything reads them, so that an exit's confidence concerns tokens that may be drawn.
"""

import math
from collections.abc import Iterable
from weakref import WeakKeyDictionary

import msgspec
import torch

from shard.engine.sequence import Sequence

FORBIDDEN = -1e30  # never drawn; finite at any temperature, as is the next
UNWANTED = -1e20  # drawn only without an alternative: an early end, the end of a bad word


class Prepared(msgspec.Struct, frozen=True):
    """A sequence's own rules as tensors."""

    forbidden: torch.Tensor | None  # (V,) bool
    biased: torch.Tensor | None  # ids (N,)
    biases: torch.Tensor | None  # (N,)
    ends: torch.Tensor  # ids (E,) of tokens that end the answer


class TokenRules:
    """Applies a sequence's rules to scores (V,); most sequences have none."""

    def __init__(self, eos_token_ids: Iterable[int], device: torch.device):
        self.eos_token_ids = list(eos_token_ids)
        self._device = device
        self._prepared: WeakKeyDictionary[Sequence, Prepared] = WeakKeyDictionary()

    def bind(self, sequence: Sequence, num_tokens: int) -> bool:
        """True if the sequence has rules for the token after the first `num_tokens`."""
        return sequence.constraint is not None or self.change_scores(sequence, num_tokens)

    def change_scores(self, sequence: Sequence, num_tokens: int) -> bool:
        """True if rules beside a grammar change scores; a grammar only forbids tokens."""
        sampling = sequence.sampling
        return bool(
            sampling.logit_bias
            or sampling.allowed_token_ids
            or sampling.bad_token_ids
            or num_tokens - sequence.num_prompt_tokens < sampling.min_tokens
        )

    def apply(self, scores: torch.Tensor, sequence: Sequence, num_tokens: int) -> None:
        """Apply rules in place to float32 scores (V,) of the token after the first `num_tokens`."""
        prepared = self._prepared.get(sequence)
        if prepared is None:
            prepared = self._prepared[sequence] = self._prepare(sequence, len(scores))
        if prepared.biased is not None and prepared.biases is not None:
            scores[prepared.biased] += prepared.biases
        if prepared.forbidden is not None:
            scores.masked_fill_(prepared.forbidden, FORBIDDEN)
        if num_tokens - sequence.num_prompt_tokens < sequence.sampling.min_tokens:
            scores[prepared.ends] = scores[prepared.ends].clamp(max=UNWANTED)
        for id in _ends_of_bad_words(sequence, num_tokens):
            scores[id] = scores[id].clamp(max=UNWANTED)
        if sequence.constraint is not None:
            illegal = sequence.constraint.illegal(sequence.token_ids, num_tokens)
            if illegal is not None:  # below anything that is forbidden otherwise: a grammar has the last word
                scores.masked_fill_(illegal.to(scores.device), -math.inf)

    def _prepare(self, sequence: Sequence, vocab_size: int) -> Prepared:
        sampling, forbidden = sequence.sampling, None
        if sampling.allowed_token_ids:
            forbidden = torch.ones(vocab_size, dtype=torch.bool, device=self._device)
            forbidden[self._ids(sampling.allowed_token_ids)] = False
        has_bias = bool(sampling.logit_bias)
        biases = torch.tensor(list(sampling.logit_bias.values()), dtype=torch.float32, device=self._device)
        return Prepared(
            forbidden,
            self._ids(sampling.logit_bias) if has_bias else None,
            biases if has_bias else None,
            self._ids({*self.eos_token_ids, *sampling.stop_token_ids}),
        )

    def _ids(self, ids: Iterable[int]) -> torch.Tensor:
        return torch.tensor(list(ids), dtype=torch.int64, device=self._device)


def _ends_of_bad_words(sequence: Sequence, num_tokens: int) -> set[int]:
    """Tokens that would complete a bad word begun in the answer."""
    answer = sequence.token_ids[sequence.num_prompt_tokens : num_tokens]
    return {
        word[-1]
        for word in sequence.sampling.bad_token_ids
        if answer[len(answer) - len(word) + 1 :] == word[:-1] and len(answer) >= len(word) - 1
    }
