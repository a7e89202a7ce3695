"""Logits at an exit for the price of a few: a product of low rank proposes, the LM head decides.

The idea of HiRE (Samaga et al. 2024): a cheap approximation need not be right, it only has to have the likely
tokens among its best.
"""

import torch

from shard.ops.plain import Linear

PARTS = 16  # of the vocabulary, laid over each other to look for the likeliest tokens


class Shortlist:
    """In place of the LM head: exact logits for `count` tokens that look likeliest, approximate others.

    What proposes and what decides need not read the same of the features: `turn` makes of them what the LM
    head was trained to read. None: that is what they are.
    """

    def __init__(
        self, narrow: Linear, vocabulary: Linear, rows: torch.Tensor, count: int, turn: Linear | None = None
    ):
        self._narrow = narrow  # H -> rank
        self._vocabulary = vocabulary  # rank -> V
        self._rows = rows  # the LM head's, (V, H)
        self._count = min(count, len(rows))
        self._turn = turn  # H -> H

    def __call__(self, features: torch.Tensor) -> torch.Tensor:
        """Logits (N, V) of features (N, H)."""
        logits = self._vocabulary(self._narrow(features))
        likely = likeliest(logits, self._count)
        turned = features if self._turn is None else self._turn(features)
        exact = torch.bmm(self._rows[likely], turned[:, :, None])[:, :, 0]
        return logits.scatter_(1, likely, exact)


def likeliest(logits: torch.Tensor, count: int) -> torch.Tensor:
    """The indices (N, count) of the greatest of logits (N, V), in any order.

    A token of the `count` greatest stands in one of the `count` columns with the greatest maxima, when the
    vocabulary is laid out in columns: a third of the time of `topk` over all of it.
    """
    num_columns = logits.shape[1] // PARTS
    if count >= num_columns:
        return logits.topk(count, dim=-1, sorted=False).indices
    laid = logits[:, : num_columns * PARTS].view(-1, PARTS, num_columns)
    columns = laid.amax(1).topk(count, dim=-1, sorted=False).indices  # (N, count)
    starts = torch.arange(0, num_columns * PARTS, num_columns, device=logits.device)
    ids = (columns[:, None] + starts[:, None]).flatten(1)
    left_over = torch.arange(num_columns * PARTS, logits.shape[1], device=logits.device)
    ids = torch.cat((ids, left_over.expand(len(ids), -1)), dim=1)
    return ids.gather(1, logits.gather(1, ids).topk(count, dim=-1, sorted=False).indices)
