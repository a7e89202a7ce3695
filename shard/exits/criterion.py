"""A row's confidence at an exit, by the chosen criterion, and its threshold."""

import math

import torch

from shard.engine.token_rules import TokenRules
from shard.exits.exit_heads import Exit
from shard.exits.segments import Row
from shard.messages import Criterion
from shard.ops.plain import PlainOps


class ConfidenceCriterion:
    """Confidences in [0, 1] by one criterion."""

    def __init__(self, criterion: Criterion, threshold: float, ops: PlainOps, rules: TokenRules):
        self._criterion = criterion
        self._threshold = threshold
        self._ops = ops
        self._rules = rules

    @property
    def needs_logits(self) -> bool:
        """True if the criterion reads logits."""
        return self._criterion in (Criterion.SOFTMAX, Criterion.MARGIN)

    @property
    def compares_hidden(self) -> bool:
        """True if the criterion compares hidden states across the last segment."""
        return self._criterion is Criterion.SIMILARITY

    def of_logits(self, logits: torch.Tensor) -> torch.Tensor:
        """Confidences (N,) of logits (N, V)."""
        probabilities = (self._ops.top_two(logits) - self._ops.log_sum_exp(logits)[:, None]).exp()
        if self._criterion is Criterion.MARGIN:
            return probabilities[:, 0] - probabilities[:, 1]
        return probabilities[:, 0]

    def of_rows(self, logits: torch.Tensor, rows: list[Row]) -> torch.Tensor:
        """Confidences (N,) of rows by their logits (N, V), restricted to the tokens that each may draw."""
        confidences = self.of_logits(logits)
        bound = [i for i, row in enumerate(rows) if self._rules.bind(row.sequence, row.sequence.num_tokens)]
        if bound:
            scores = logits[bound].float()
            for row_scores, i in zip(scores, bound, strict=True):
                self._rules.apply(row_scores, rows[i].sequence, rows[i].sequence.num_tokens)
            confidences[bound] = self.of_logits(scores)
        return confidences

    def of_hidden(self, exit_head: Exit, hidden: torch.Tensor, before: torch.Tensor | None) -> torch.Tensor:
        """Confidences (N,) of hidden states (N, H), with those at the boundary before for `similarity`."""
        if not self.compares_hidden:
            return exit_head.probe(hidden)
        assert before is not None
        return torch.cosine_similarity(hidden.float(), before.float(), dim=-1).clamp(0, 1)

    def threshold(self, exit_head: Exit, row: Row) -> float:
        """A row's threshold: its request's, else the exit's, else the default.

        1 becomes unreachable, since a probability may be rounded to 1.
        """
        own = row.sequence.exit_threshold
        limit = exit_head.threshold(self._criterion, self._threshold) if own is None else own
        return limit if limit < 1 else math.inf
