"""Draws the tokens of all rows of a step at once, whichever exit each left at.

A vocabulary's product costs nearly the same for one row as for many, so rows that share one go through it
together. Rows whose logits an exit has computed are drawn from those.
"""

from collections.abc import Callable

import torch

from shard.engine.sampler import Draw, Sampler
from shard.exits.segments import Row

Vocabulary = Callable[[torch.Tensor], torch.Tensor]  # features (N, F) -> logits (N, V)


class DeferredSampling:
    """Collects rows that leave in a step, then draws their tokens."""

    def __init__(self) -> None:
        self._features: dict[Vocabulary, list[tuple[list[Row], torch.Tensor]]] = {}  # by vocabulary
        self._logits: list[tuple[list[Row], torch.Tensor]] = []
        self.num_rows = 0

    def add(self, rows: list[Row], exit_layer: int, features: torch.Tensor, vocabulary: Vocabulary) -> None:
        """Add rows that left with features (N, F), from which `vocabulary` computes logits.

        N counts every draw of a row: one more than its drafts.
        """
        self._features.setdefault(vocabulary, []).append((rows, features))
        self._note(rows, exit_layer)

    def add_logits(self, rows: list[Row], exit_layer: int, logits: torch.Tensor) -> None:
        """Add rows that left with logits (N, V)."""
        self._logits.append((rows, logits))
        self._note(rows, exit_layer)

    def multiply(self) -> bool:
        """Run each vocabulary once, for all its rows; False when there is nothing to run."""
        groups, self._features = self._features, {}
        for vocabulary, group in groups.items():
            rows = [row for some, _ in group for row in some]
            self._logits.append((rows, vocabulary(torch.cat([features for _, features in group]))))
        return bool(groups)

    def draw(self, sampler: Sampler) -> None:
        """Draw every row's token."""
        for rows, logits in self._logits:
            drawing = [(row, back) for row in rows for back in range(row.chunk.num_drafts, -1, -1)]
            draws = [
                Draw(r.sequence, r.sequence.num_tokens - back, r.exit_layer, r.confidence)
                for r, back in drawing
            ]
            for (row, _), token in zip(drawing, sampler.choose(logits, draws), strict=True):
                row.tokens.append(token)
            for row in rows:
                row.tokens = row.chunk.standing(row.tokens)

    def _note(self, rows: list[Row], exit_layer: int) -> None:
        self.num_rows += len(rows)
        for row in rows:
            row.exit_layer = exit_layer
