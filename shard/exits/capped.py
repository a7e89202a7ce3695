"""`capped` (HELIOS): layers beyond the last exit are not loaded, and every row leaves there.

A row whose confidence is below its threshold leaves too, and counts as a breach.
"""

from shard.engine.sampler import Draw, Sampler
from shard.engine.sequence_table import Chunk
from shard.exits.criterion import ConfidenceCriterion
from shard.exits.replay import Replay
from shard.exits.segments import Row, SegmentedDecoder
from shard.messages import ExitReport, TokenOutput


class Capped:
    """Runs the chunks of a step through one segment and the exit behind it."""

    def __init__(
        self,
        segmented: SegmentedDecoder,
        criterion: ConfidenceCriterion,
        sampler: Sampler,
        replay: Replay | None = None,
    ):
        self._segmented = segmented
        self._exit = segmented.exits[-1]
        self._criterion = criterion
        self._sampler = sampler
        self._replay = replay

    def run(self, chunks: list[Chunk]) -> tuple[list[list[TokenOutput]], ExitReport]:
        """For each chunk its next token, or none while its prompt goes on."""
        laps, times_ms = self._segmented.laps, list[float]()
        lap = laps.start()
        rows = [Row(chunk, 1) for chunk in chunks]
        active = self._segmented.start(rows)
        before = active.hidden
        self._segmented.run(0, active)
        laps.stop(lap, times_ms.append)
        lap = laps.start()
        drawing = [i for i, row in enumerate(rows) if row.chunk.samples]
        if not drawing:
            laps.settle()
            return [[] for _ in rows], ExitReport(segment_ms=times_ms)
        counts = [rows[i].chunk.num_draws for i in drawing]
        at = active.tails(drawing, counts)
        features = self._segmented.features(0, active, drawing, counts)
        drawing = [i for i, count in zip(drawing, counts, strict=True) for _ in range(count)]
        logits = self._exit.vocabulary(features)
        limits = [self._criterion.threshold(self._exit, rows[i]) for i in drawing]
        if self._replay is not None:
            confidences = [self._replayed(rows[i], limit) for i, limit in zip(drawing, limits, strict=True)]
        elif self._criterion.needs_logits:
            confidences = self._criterion.of_rows(logits, [rows[i] for i in drawing]).tolist()
        else:
            confidences = self._criterion.of_hidden(self._exit, active.hidden[at], before[at]).tolist()
        backs = [back for count in counts for back in range(count - 1, -1, -1)]
        draws = [
            Draw(rows[i].sequence, rows[i].chunk.end - back, self._exit.layer, confidence)
            for i, back, confidence in zip(drawing, backs, confidences, strict=True)
        ]
        for i, token in zip(drawing, self._sampler.choose(logits, draws), strict=True):
            rows[i].tokens.append(token)
        for row in rows:
            row.tokens = row.chunk.standing(row.tokens)
        laps.stop(lap, times_ms.append)
        laps.settle()
        limit_of = {rows[i].sequence: limit for i, limit in zip(drawing, limits, strict=True)}
        standing = [(token, limit_of[row.sequence]) for row in rows for token in row.tokens]
        sure = [(token.confidence or 0.0, limit) for token, limit in standing]
        return [row.tokens for row in rows], ExitReport(
            tokens_by_exit={self._exit.layer: len(standing)},
            confidence_sum=sum(confidence for confidence, _ in sure),
            num_confident=len(sure),
            breaches=sum(confidence < limit for confidence, limit in sure),
            segment_ms=times_ms[:1],
            head_ms=times_ms[1],
        )

    def _replayed(self, row: Row, limit: float) -> float:
        """A confidence above the threshold if the replayed layer is loaded, below it otherwise."""
        assert self._replay is not None
        layer = self._replay.layer(row.sequence, row.sequence.num_tokens)
        return (1 + limit) / 2 if layer <= self._exit.layer else limit / 2
