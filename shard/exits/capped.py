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
        before = active.hidden[active.batch.query_starts[1:] - 1]
        self._segmented.run(0, active)
        laps.stop(lap, times_ms.append)
        lap = laps.start()
        drawing = [i for i, row in enumerate(rows) if row.chunk.samples]
        if not drawing:
            laps.settle()
            return [[] for _ in rows], ExitReport(segment_ms=times_ms)
        features = self._segmented.features(0, active, drawing)
        logits = self._exit.vocabulary(features)
        limits = [self._criterion.threshold(self._exit, rows[i]) for i in drawing]
        if self._replay is not None:
            confidences = [self._replayed(rows[i], limit) for i, limit in zip(drawing, limits, strict=True)]
        elif self._criterion.needs_logits:
            confidences = self._criterion.of_rows(logits, [rows[i] for i in drawing]).tolist()
        else:
            confidences = self._criterion.of_hidden(
                self._exit, active.last(drawing), before[drawing]
            ).tolist()
        draws = [
            Draw(rows[i].sequence, rows[i].sequence.num_tokens, self._exit.layer, confidence)
            for i, confidence in zip(drawing, confidences, strict=True)
        ]
        for i, token in zip(drawing, self._sampler.choose(logits, draws), strict=True):
            rows[i].tokens = [token]
        laps.stop(lap, times_ms.append)
        laps.settle()
        return [row.tokens for row in rows], ExitReport(
            tokens_by_exit={self._exit.layer: len(drawing)},
            confidence_sum=sum(confidences),
            num_confident=len(confidences),
            breaches=sum(sure < limit for sure, limit in zip(confidences, limits, strict=True)),
            segment_ms=times_ms[:1],
            head_ms=times_ms[1],
        )

    def _replayed(self, row: Row, limit: float) -> float:
        """A confidence above the threshold if the replayed layer is loaded, below it otherwise."""
        assert self._replay is not None
        layer = self._replay.layer(row.sequence, row.sequence.num_tokens)
        return (1 + limit) / 2 if layer <= self._exit.layer else limit / 2
