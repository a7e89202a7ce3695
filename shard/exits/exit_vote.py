"""Decides which rows pass at an exit, by the chosen criterion or by a replayed distribution."""

import functools
import math
from collections.abc import Callable

import msgspec
import torch

from shard.exits.ask_gate import ExitSkipper
from shard.exits.criterion import ConfidenceCriterion
from shard.exits.exit_heads import Exit
from shard.exits.replay import Replay
from shard.exits.segments import ActiveRows, Row, SegmentedDecoder

Heard = Callable[[float], None]


class Vote(msgspec.Struct, frozen=True):
    """Logits computed for the vote, reused for the draw."""

    at: dict[int, int] = {}  # index of an active row -> row of the logits
    logits: torch.Tensor | None = None  # (N, V) of the rows asked by logits

    def logits_of(self, indices: list[int]) -> torch.Tensor:
        """Logits of some of the rows that were asked by logits."""
        assert self.logits is not None
        rows = [self.at[i] for i in indices]
        return self.logits if len(rows) == len(self.logits) else self.logits[rows]


class ExitDecision:
    """Decides which rows leave at an exit, asking where that pays."""

    def __init__(
        self,
        segmented: SegmentedDecoder,
        criterion: ConfidenceCriterion,
        replay: Replay | None,
        may_skip: bool,
    ):
        self._segmented = segmented
        self._criterion = criterion
        self._replay = replay
        self.skipper = ExitSkipper(
            len(segmented.exits), enabled=criterion.needs_logits and replay is None and may_skip
        )

    @property
    def compares_hidden(self) -> bool:
        """True if `ask` needs the hidden states at the previous boundary."""
        return self._criterion.compares_hidden and self._replay is None

    def ask(
        self, segment: int, active: ActiveRows, asked: list[int], before: torch.Tensor | None, heard: Heard
    ) -> Vote:
        """Mark rows that pass at the exit behind a segment. Rows with an unreachable threshold are not asked.

        `heard` receives the head's milliseconds.
        """
        exit_head = self._segmented.exits[segment]
        if self._replay is None:
            asked = [i for i in asked if self._criterion.threshold(exit_head, active.rows[i]) < math.inf]
        if self._replay is not None:
            for row in (active.rows[i] for i in asked):
                row.passed = self._replay.layer(row.sequence, row.sequence.num_tokens) <= exit_head.layer
        elif asked and self._criterion.needs_logits:
            return self._ask_head(segment, exit_head, active, asked, heard)
        elif asked:
            earlier = None if before is None else before[asked]
            self._judge(
                exit_head, active, asked, self._criterion.of_hidden(exit_head, active.last(asked), earlier)
            )
        return Vote()

    def is_breach(self, segment: int, row: Row) -> bool:
        """A row left below its threshold, as `synchronized` may make it."""
        limit = self._criterion.threshold(self._segmented.exits[segment], row)
        return row.confidence is not None and row.confidence < limit

    def _ask_head(
        self, segment: int, exit_head: Exit, active: ActiveRows, asked: list[int], heard: Heard
    ) -> Vote:
        laps = self._segmented.laps
        lap = laps.start()
        promising, logits = self._promising(exit_head, active, asked), None
        if promising:
            logits = exit_head.vocabulary(self._segmented.features(segment, active, promising))
            confidences = self._criterion.of_rows(logits, [active.rows[i] for i in promising])
            self._judge(exit_head, active, promising, confidences)
        num_passed = sum(active.rows[i].passed for i in asked)
        laps.stop(lap, functools.partial(self.skipper.note_asked, segment, len(asked), num_passed))
        laps.stop(lap, heard)
        return Vote({i: at for at, i in enumerate(promising)}, logits)

    def _promising(self, exit_head: Exit, active: ActiveRows, asked: list[int]) -> list[int]:
        """Rows for which the exit's probe, if it has a floor, finds the head worth running."""
        if exit_head.probe_floor is None:
            return asked
        chances = exit_head.probe(active.last(asked)).tolist()
        return [i for i, chance in zip(asked, chances, strict=True) if chance >= exit_head.probe_floor]

    def _judge(
        self, exit_head: Exit, active: ActiveRows, asked: list[int], confidences: torch.Tensor
    ) -> None:
        for i, confidence in zip(asked, confidences.tolist(), strict=True):
            row = active.rows[i]
            row.confidence = confidence
            row.passed = confidence >= self._criterion.threshold(exit_head, row)
