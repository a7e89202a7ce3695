"""Early exit of a batch's rows (`synchronized`, `per_row`), and the KV of layers not run.

A step carries its rows through the decoder's segments; behind each one, decoding rows may leave. KV that a
row skipped is filled when it next goes deeper (segments.py): by projecting its hidden states (`project`, Miao
et al. 2024), or by exact computation (`recompute`), after which the KV of every layer that was run equals a
full forward pass's.

- `synchronized` (Miao et al.): the batch runs on until every row has passed; passing is sticky.
- `per_row`: each row leaves at its own exit. Rows that stay at the first exit may wait and go deep together.

Prompts, and rows that may not leave early, run to full depth and do not vote.
"""

import functools
import time

import torch

from shard.engine.full_depth import FullDepth
from shard.engine.sampler import Sampler
from shard.engine.sequence import Sequence
from shard.engine.sequence_table import Chunk
from shard.exits.criterion import ConfidenceCriterion
from shard.exits.deferral import MAX_WAIT_STEPS, Deferral
from shard.exits.deferred_sampling import DeferredSampling
from shard.exits.exit_vote import ExitDecision
from shard.exits.fallback import ExitFallback
from shard.exits.replay import Replay
from shard.exits.segments import ActiveRows, CatchUp, Row, SegmentedDecoder
from shard.exits.settings import Settings
from shard.messages import ExitReport, Fill, Mode, TokenOutput


class Tally:
    """Statistics of a step."""

    def __init__(self, num_segments: int):
        self.deferred = DeferredSampling()
        self.segment_ms = [0.0] * num_segments
        self.head_ms = 0.0
        self.fill_ms = 0.0
        self.kv_fills = 0
        self.breaches = 0
        self.num_waiting = 0
        self.num_deep_tokens = 0  # that entered the second segment

    def note_segment(self, segment: int, catch_up: CatchUp | None, ms: float) -> None:
        """Note a segment's pass, and the pending tokens caught up in it."""
        self.segment_ms[segment] += ms
        if catch_up is not None:
            self.kv_fills += catch_up.num_fills
            self.fill_ms += catch_up.ms
            self.segment_ms[segment] -= catch_up.ms

    def note_head(self, ms: float) -> None:
        """Note the time of a head, run to ask or to draw."""
        self.head_ms += ms

    def report(self, rows: list[Row]) -> ExitReport:
        """The statistics as a message."""
        tokens = [token for row in rows for token in row.tokens]
        layers = [token.exit_layer for token in tokens]
        known = [token.confidence for token in tokens if token.confidence is not None]
        return ExitReport(
            tokens_by_exit={layer: layers.count(layer) for layer in sorted(set(layers))},
            confidence_sum=sum(known),
            num_confident=len(known),
            breaches=self.breaches,
            kv_fills=self.kv_fills,
            waiting=self.num_waiting,
            segment_ms=self.segment_ms,
            head_ms=self.head_ms,
            fill_ms=self.fill_ms,
        )


class EarlyExit:
    """Runs the chunks of a step in `synchronized` or `per_row` mode."""

    def __init__(
        self,
        segmented: SegmentedDecoder,
        settings: Settings,
        criterion: ConfidenceCriterion,
        full_depth: FullDepth,
        sampler: Sampler,
        replay: Replay | None = None,
    ):
        self._segmented = segmented
        self._full_depth = full_depth
        self._settings = settings
        self._sampler = sampler
        self._decision = ExitDecision(segmented, criterion, replay, may_skip=settings.falls_back)
        self.fallback = ExitFallback(settings.falls_back)
        self.deferral = Deferral()

    def run(self, chunks: list[Chunk]) -> tuple[list[list[TokenOutput]], ExitReport]:
        """For each chunk its next token, or none while its prompt goes on or it waits for others."""
        started = time.perf_counter()
        tally = Tally(self._segmented.num_segments)
        rows = [Row(chunk, self._segmented.num_segments) for chunk in chunks]
        decoding = [row for row in rows if row.waits or is_decoding(row.chunk)]
        exits_on = self.fallback.wants_exits(len(decoding))
        for row in decoding:
            row.votes = exits_on and self._may_leave(row)
        if self._nothing_to_do_for_exits(rows):
            for row, made in zip(rows, self._full_depth.run(chunks), strict=True):
                row.tokens = made.tokens
        else:
            self._run_segments(rows, tally)
            self._draw(tally)
            self._note_costs(rows, tally)
        for row in rows:
            row.sequence.has_pending = row.pending_states.has_pending
        if len(decoding) == len(rows) and not any(chunk.num_drafts for chunk in chunks):
            num_tokens, ms = sum(len(row.tokens) for row in rows), (time.perf_counter() - started) * 1000
            self.fallback.note(len(rows), num_tokens, ms, tally.num_waiting)
        return [row.tokens for row in rows], tally.report(rows)

    def _nothing_to_do_for_exits(self, rows: list[Row]) -> bool:
        """No row votes, no token is pending, and no head has its own KV: full depth will do."""
        has_blocks = any(exit_head.block is not None for exit_head in self._segmented.exits)
        return not has_blocks and not any(
            row.votes or row.waits or row.pending_states.has_pending for row in rows
        )

    def _may_leave(self, row: Row) -> bool:
        """A decoding row may leave, unless it must run to full depth or has too many tokens to project.

        One with drafts may not: the deepest layer verifies.
        """
        in_hand = row.chunk.num_tokens <= 1 or self._settings.fill is Fill.RECOMPUTE
        return row.sequence.may_exit and in_hand and not row.chunk.num_drafts

    def _run_segments(self, rows: list[Row], tally: Tally) -> None:
        waiting = [row for row in rows if row.waits]
        fresh = [row for row in rows if not row.waits]
        active = self._segmented.start(fresh) if fresh else None
        for segment in range(self._segmented.num_segments):
            if segment == 1:
                active, joining = self._meet(active, waiting, tally)
                active = self._segmented.enter(1, active, joining)
                tally.num_deep_tokens = 0 if active is None else len(active.hidden)
            elif segment > 1:
                active = self._segmented.enter(segment, active, [])
            if active is None:
                continue
            active = self._run_segment(segment, active, tally)
        if active is not None:
            self._finish(active, tally)

    def _run_segment(self, segment: int, active: ActiveRows, tally: Tally) -> ActiveRows | None:
        """Run a segment and ask at the exit behind it; returns the rows that go on."""
        laps = self._segmented.laps
        lap = laps.start()
        before = active.last(list(range(len(active.rows)))) if self._decision.compares_hidden else None
        self._segmented.run(segment, active)
        laps.stop(lap, functools.partial(self._note_segment, segment, active.catch_up, tally))
        if segment == len(self._segmented.exits):
            return active
        voters = [i for i, row in enumerate(active.rows) if row.votes]
        asks = bool(voters) and self._decision.skipper.asks(segment)
        leaving = self._leaving(segment, active, voters, before, tally) if asks else []
        if segment == 0 and asks:
            self.deferral.note_vote(len(voters), len(voters) - len(leaving))
        return self._part(segment, active, leaving) if leaving else active

    def _note_segment(self, segment: int, catch_up: CatchUp | None, tally: Tally, ms: float) -> None:
        tally.note_segment(segment, catch_up, ms)
        self._decision.skipper.note_segment(segment, tally.segment_ms[segment])

    def _leaving(
        self, segment: int, active: ActiveRows, voters: list[int], before: torch.Tensor | None, tally: Tally
    ) -> list[int]:
        """Rows that leave behind a segment; their features or logits go to the tally."""
        asked = [i for i in voters if not active.rows[i].passed]
        vote = self._decision.ask(segment, active, asked, before, tally.note_head)
        leaving = [i for i in voters if active.rows[i].passed]
        if self._settings.mode is Mode.SYNCHRONIZED:
            decoding = [row for row in active.rows if is_decoding(row.chunk)]
            leaving = leaving if len(leaving) == len(decoding) else []
        tally.breaches += sum(self._decision.is_breach(segment, active.rows[i]) for i in leaving)
        exit_head = self._segmented.exits[segment]
        known = [i for i in leaving if i in vote.at]
        if known:
            tally.deferred.add_logits([active.rows[i] for i in known], exit_head.layer, vote.logits_of(known))
        unknown = [i for i in leaving if i not in vote.at]
        if unknown:
            features = self._segmented.features(segment, active, unknown)
            tally.deferred.add(
                [active.rows[i] for i in unknown], exit_head.layer, features, exit_head.vocabulary
            )
        return leaving

    def _part(self, segment: int, active: ActiveRows, leaving: list[int]) -> ActiveRows | None:
        """Remove leaving rows and keep their tokens as pending; returns the rows that stay."""
        pieces, gone = active.pieces(), set(leaving)
        for i in leaving:
            active.rows[i].pending_states.keep(segment + 1, pieces[i])
            self._note_projected(active.rows[i].sequence, active.rows[i].chunk.end - len(pieces[i]))
        staying = [i for i in range(len(active.rows)) if i not in gone]
        if not staying:
            return None
        return self._segmented.activate([active.rows[i] for i in staying], [pieces[i] for i in staying])

    def _note_projected(self, sequence: Sequence, position: int) -> None:
        """Keep others from KV that is only projected, of this token and of those that attend to it."""
        if self._settings.fill is Fill.PROJECT and sequence.approximate_from is None:
            sequence.approximate_from = position

    def _meet(
        self, active: ActiveRows | None, waiting: list[Row], tally: Tally
    ) -> tuple[ActiveRows | None, list[Row]]:
        """At the first exit, staying and waiting rows go deep together, or all wait on."""
        staying = active.rows if active is not None else []
        if not waiting and not self._settings.defers:
            return active, []
        num_rows = len(waiting) + tally.deferred.num_rows + len(staying)
        if self._goes_deep(staying, waiting, num_rows, tally.deferred.num_rows > 0):
            for row in waiting:
                row.sequence.waits = False
            return active, waiting
        for row, piece in zip(staying, active.pieces() if active is not None else [], strict=True):
            row.pending_states.wait(piece)
            row.sequence.waits = True
        for row in (*staying, *waiting):
            row.pending_states.wait_steps += 1
        tally.num_waiting = len(staying) + len(waiting)
        return None, []

    def _goes_deep(self, staying: list[Row], waiting: list[Row], num_rows: int, some_left: bool) -> bool:
        """True if a deep pass is due now."""
        if self._settings.mode is not Mode.PER_ROW or not self._settings.defers or not some_left:
            return True
        if any(not row.votes for row in staying):
            return True  # prompts and exact rows go deep anyway
        if any(row.pending_states.wait_steps >= MAX_WAIT_STEPS for row in waiting):
            return True
        return len(staying) + len(waiting) >= self.deferral.wanted(num_rows)

    def _finish(self, active: ActiveRows, tally: Tally) -> None:
        """Draw at full depth for rows that have run all their known tokens."""
        indices = [i for i, row in enumerate(active.rows) if row.waits or row.chunk.samples]
        if not indices:
            return
        rows = [active.rows[i] for i in indices]
        for row in rows:
            row.confidence = None
        decoder = self._segmented.decoder
        last = active.hidden[active.tails(indices, [1 + row.chunk.num_drafts for row in rows])]
        tally.deferred.add(rows, decoder.depth, decoder.normed(last), decoder.head)

    def _draw(self, tally: Tally) -> None:
        """Draw the tokens of all rows of the step."""
        laps = self._segmented.laps
        lap = laps.start()
        if tally.deferred.multiply():
            laps.stop(lap, self._decision.skipper.note_head)
        tally.deferred.draw(self._sampler)
        laps.stop(lap, tally.note_head)
        laps.settle()

    def _note_costs(self, rows: list[Row], tally: Tally) -> None:
        """Report the times of passes to the deferral."""
        num_tokens = sum(row.chunk.num_tokens for row in rows)
        if num_tokens:
            self.deferral.note_shallow(num_tokens, tally.segment_ms[0] + tally.head_ms)
        if tally.num_deep_tokens:
            self.deferral.note_deep(tally.num_deep_tokens, sum(tally.segment_ms[1:]) + tally.fill_ms)


def is_decoding(chunk: Chunk) -> bool:
    """True when the chunk ends in a token of the answer, so that the next one may be drawn at an exit."""
    return chunk.samples and chunk.sequence.num_new_tokens > 0
