"""Who leaves where in a batch, and what happens to the KV of the layers not run.

A step carries its rows through the decoder's segments; behind each one, the rows that decode are asked
whether they leave. What a row leaves undone is made up for when it next goes deeper (stack.py): by projecting
its hidden states (`project`, Miao et al. 2024), or by computing it exactly (`recompute`), after which the KV
of every layer that was run equals a full forward's.

- `synchronized` (Miao et al.): the batch runs on until every row has passed; passing is sticky.
- `per_row`: each row leaves at its own exit. Rows that stay at the first exit may wait and go deep together.

Prompts run to full depth and have no vote. Rows that may not leave early have none either.
"""

import functools
import time

import torch

from shard.engine.full_depth import FullDepth
from shard.engine.sampler import Sampler
from shard.engine.sequence_table import Chunk
from shard.exits.criterion import Gauge
from shard.exits.deferral import MAX_WAIT_STEPS, Deferral
from shard.exits.deferred_sampling import Drawing
from shard.exits.exit_vote import Voting
from shard.exits.fallback import Governor
from shard.exits.replay import Replay
from shard.exits.segments import Behind, Front, Row, Stack
from shard.exits.settings import Settings
from shard.messages import ExitReport, Fill, Mode, TokenOutput


class Tally:
    """What a step does, counted while it does it."""

    def __init__(self, num_segments: int):
        self.drawing = Drawing()
        self.segment_ms = [0.0] * num_segments
        self.head_ms = 0.0
        self.fill_ms = 0.0
        self.kv_fills = 0
        self.breaches = 0
        self.num_waiting = 0
        self.num_deep_tokens = 0  # that entered the second segment

    def note_segment(self, segment: int, behind: Behind | None, ms: float) -> None:
        """A segment's pass, with what it did for tokens that had left before it."""
        self.segment_ms[segment] += ms
        if behind is not None:
            self.kv_fills += behind.num_fills
            self.fill_ms += behind.ms
            self.segment_ms[segment] -= behind.ms

    def note_head(self, ms: float) -> None:
        """A head was run, to ask or to draw."""
        self.head_ms += ms

    def report(self, rows: list[Row]) -> ExitReport:
        """In the words of the wire."""
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
        stack: Stack,
        settings: Settings,
        gauge: Gauge,
        full_depth: FullDepth,
        sampler: Sampler,
        replay: Replay | None = None,
    ):
        self._stack = stack
        self._full_depth = full_depth
        self._settings = settings
        self._sampler = sampler
        self._voting = Voting(stack, gauge, replay, may_skip=settings.falls_back)
        self._governor = Governor(settings.falls_back)
        self._deferral = Deferral()

    def run(self, chunks: list[Chunk]) -> tuple[list[list[TokenOutput]], ExitReport]:
        """For each chunk its next token, or none while its prompt goes on or it waits for others."""
        started = time.perf_counter()
        tally = Tally(self._stack.num_segments)
        rows = [Row(chunk, self._stack.num_segments) for chunk in chunks]
        decoding = [row for row in rows if row.waits or is_decoding(row.chunk)]
        exits_on = self._governor.wants_exits(len(decoding))
        for row in decoding:
            row.votes = exits_on and self._may_leave(row)
        if self._nothing_to_do_for_exits(rows):
            for row, made in zip(rows, self._full_depth.run(chunks), strict=True):
                row.tokens = made.tokens
        else:
            self._run_segments(rows, tally)
            self._draw(tally)
            self._note_costs(rows, tally)
        if len(decoding) == len(rows):
            num_tokens, ms = sum(len(row.tokens) for row in rows), (time.perf_counter() - started) * 1000
            self._governor.note(len(rows), num_tokens, ms, tally.num_waiting)
        return [row.tokens for row in rows], tally.report(rows)

    def _nothing_to_do_for_exits(self, rows: list[Row]) -> bool:
        """Nobody votes, nothing is pending, no head has KV of its own to keep up: full depth, undivided."""
        has_blocks = any(exit.block is not None for exit in self._stack.exits)
        return not has_blocks and not any(row.votes or row.waits or row.carried.has_pending for row in rows)

    def _may_leave(self, row: Row) -> bool:
        """A decoding row may, unless it asked for full depth or has more in hand than a projection serves."""
        in_hand = row.chunk.num_tokens <= 1 or self._settings.fill is Fill.RECOMPUTE
        return row.sequence.may_exit and in_hand

    def _run_segments(self, rows: list[Row], tally: Tally) -> None:
        waiting = [row for row in rows if row.waits]
        fresh = [row for row in rows if not row.waits]
        front = self._stack.start(fresh) if fresh else None
        for segment in range(self._stack.num_segments):
            if segment == 1:
                front, joining = self._meet(front, waiting, tally)
                front = self._stack.enter(1, front, joining)
                tally.num_deep_tokens = 0 if front is None else len(front.hidden)
            elif segment > 1:
                front = self._stack.enter(segment, front, [])
            if front is None:
                continue
            front = self._run_segment(segment, front, tally)
        if front is not None:
            self._finish(front, tally)

    def _run_segment(self, segment: int, front: Front, tally: Tally) -> Front | None:
        """Run it and ask at the exit behind it; who goes on."""
        laps = self._stack.laps
        lap = laps.start()
        before = front.last(list(range(len(front.rows)))) if self._voting.compares_hidden else None
        self._stack.run(segment, front)
        laps.stop(lap, functools.partial(self._note_segment, segment, front.behind, tally))
        if segment == len(self._stack.exits):
            return front
        voters = [i for i, row in enumerate(front.rows) if row.votes]
        asks = bool(voters) and self._voting.gate.asks(segment)
        leaving = self._leaving(segment, front, voters, before, tally) if asks else []
        if segment == 0 and asks:
            self._deferral.note_vote(len(voters), len(voters) - len(leaving))
        return self._part(segment, front, leaving) if leaving else front

    def _note_segment(self, segment: int, behind: Behind | None, tally: Tally, ms: float) -> None:
        tally.note_segment(segment, behind, ms)
        self._voting.gate.note_segment(segment, tally.segment_ms[segment])

    def _leaving(
        self, segment: int, front: Front, voters: list[int], before: torch.Tensor | None, tally: Tally
    ) -> list[int]:
        """Rows that leave behind a segment; what their tokens are drawn from goes to the tally."""
        asked = [i for i in voters if not front.rows[i].passed]
        vote = self._voting.ask(segment, front, asked, before, tally.note_head)
        leaving = [i for i in voters if front.rows[i].passed]
        if self._settings.mode is Mode.SYNCHRONIZED:
            decoding = [row for row in front.rows if is_decoding(row.chunk)]
            leaving = leaving if len(leaving) == len(decoding) else []
        tally.breaches += sum(self._voting.is_breach(segment, front.rows[i]) for i in leaving)
        exit = self._stack.exits[segment]
        known = [i for i in leaving if i in vote.at]
        if known:
            tally.drawing.add_logits([front.rows[i] for i in known], exit.layer, vote.logits_of(known))
        unknown = [i for i in leaving if i not in vote.at]
        if unknown:
            features = self._stack.features(segment, front, unknown)
            tally.drawing.add([front.rows[i] for i in unknown], exit.layer, features, exit.vocabulary)
        return leaving

    def _part(self, segment: int, front: Front, leaving: list[int]) -> Front | None:
        """Take leaving rows out of a front, what they leave undone kept for later; those who stay."""
        pieces, gone = front.pieces(), set(leaving)
        for i in leaving:
            front.rows[i].carried.keep(segment + 1, pieces[i])
        staying = [i for i in range(len(front.rows)) if i not in gone]
        if not staying:
            return None
        return self._stack.front([front.rows[i] for i in staying], [pieces[i] for i in staying])

    def _meet(self, front: Front | None, waiting: list[Row], tally: Tally) -> tuple[Front | None, list[Row]]:
        """At the first exit: rows that stay and rows that waited go deep together, or all wait on."""
        staying = front.rows if front is not None else []
        if not waiting and not self._settings.defers:
            return front, []
        num_rows = len(waiting) + tally.drawing.num_rows + len(staying)
        if self._goes_deep(staying, waiting, num_rows, tally.drawing.num_rows > 0):
            for row in waiting:
                row.sequence.waits = False
            return front, waiting
        for row, piece in zip(staying, front.pieces() if front is not None else [], strict=True):
            row.carried.wait(piece)
            row.sequence.waits = True
        for row in (*staying, *waiting):
            row.carried.wait_steps += 1
        tally.num_waiting = len(staying) + len(waiting)
        return None, []

    def _goes_deep(self, staying: list[Row], waiting: list[Row], num_rows: int, some_left: bool) -> bool:
        """Whether a deep pass is due now."""
        if self._settings.mode is not Mode.PER_ROW or not self._settings.defers or not some_left:
            return True
        if any(not row.votes for row in staying):
            return True  # prompts and exact rows go deep anyway
        if any(row.carried.wait_steps >= MAX_WAIT_STEPS for row in waiting):
            return True
        return len(staying) + len(waiting) >= self._deferral.wanted(num_rows)

    def _finish(self, front: Front, tally: Tally) -> None:
        """Rows that came to the end and know all their tokens draw the next one from there."""
        indices = [i for i, row in enumerate(front.rows) if row.waits or row.chunk.samples]
        if not indices:
            return
        rows = [front.rows[i] for i in indices]
        for row in rows:
            row.confidence = None
        decoder = self._stack.decoder
        tally.drawing.add(rows, decoder.depth, decoder.normed(front.last(indices)), decoder.head)

    def _draw(self, tally: Tally) -> None:
        """The tokens of all rows of the step, wherever they left."""
        laps = self._stack.laps
        lap = laps.start()
        if tally.drawing.multiply():
            laps.stop(lap, self._voting.gate.note_head)
        tally.drawing.draw(self._sampler)
        laps.stop(lap, tally.note_head)
        laps.settle()

    def _note_costs(self, rows: list[Row], tally: Tally) -> None:
        """What passes took, for those who decide about waiting."""
        num_tokens = sum(row.chunk.num_tokens for row in rows)
        if num_tokens:
            self._deferral.note_shallow(num_tokens, tally.segment_ms[0] + tally.head_ms)
        if tally.num_deep_tokens:
            self._deferral.note_deep(tally.num_deep_tokens, sum(tally.segment_ms[1:]) + tally.fill_ms)


def is_decoding(chunk: Chunk) -> bool:
    """True when the chunk ends in a token of the answer, so that the next one may be drawn at an exit."""
    return chunk.samples and chunk.sequence.num_new_tokens > 0
