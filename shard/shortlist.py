"""Logits at an exit for the price of a few: a product of low rank proposes, the LM head decides.

The idea of HiRE (Samaga et al. 2024): a cheap approximation need not be right, it only has to have the likely
tokens among its best.
"""

import torch

from shard.ops.plain import Linear


class Shortlist:
    """In place of the LM head: exact logits for `count` tokens that look likeliest, approximate others."""

    def __init__(self, narrow: Linear, vocabulary: Linear, rows: torch.Tensor, count: int):
        self._narrow = narrow  # H -> rank
        self._vocabulary = vocabulary  # rank -> V
        self._rows = rows  # the LM head's, (V, H)
        self._count = min(count, len(rows))

    def __call__(self, features: torch.Tensor) -> torch.Tensor:
        """Logits (N, V) of features (N, H)."""
        logits = self._vocabulary(self._narrow(features))
        likely = logits.topk(self._count, dim=-1, sorted=False).indices  # (N, count)
        exact = torch.bmm(self._rows[likely], features[:, :, None])[:, :, 0]
        return logits.scatter_(1, likely, exact)
