"""A decoder cut into segments at its exits, and rows on their way through them.

When a row leaves early, the hidden state of each token at the boundary where it stopped is kept as pending.
When the row next enters a segment, these tokens are caught up there. Under `recompute` they run through it
before the newest one. Under `project` (Miao et al. 2024) their hidden states, unchanged, become its keys and
values, computed beside the newest token's in a product that runs anyway. A sequence that ends before saves
the work.
"""

import functools
from itertools import accumulate

import msgspec
import torch

from shard.engine.sequence_table import Chunk
from shard.engine.step_inputs import BatchMaker
from shard.exits.exit_heads import Exit
from shard.messages import Fill, TokenOutput
from shard.models.load import Decoder
from shard.ops.batch import KV, Batch
from shard.stopwatch import Laps


class PendingStates:
    """A sequence's hidden states (n, H) between steps, in the order of its tokens."""

    def __init__(self, num_segments: int):
        self.pending: list[list[torch.Tensor]] = [[] for _ in range(num_segments)]  # by segment
        self.waiting: list[torch.Tensor] = []  # current tokens, while it waits at the first exit
        self.wait_steps = 0

    @property
    def has_pending(self) -> bool:
        """True if some layers were not run for some of its tokens."""
        return any(self.pending)

    def keep(self, segment: int, hidden: torch.Tensor) -> None:
        """Keep tokens (n, H) that stop before a segment. Copies: a view would keep a whole step's alive."""
        self.pending[segment].append(hidden.clone())

    def take(self, segment: int) -> list[torch.Tensor]:
        """Remove and return all that is pending before a segment."""
        taken, self.pending[segment] = self.pending[segment], []
        return taken

    def wait(self, hidden: torch.Tensor) -> None:
        """Keep current tokens (n, H) that wait at the first exit."""
        self.waiting.append(hidden.clone())

    def go_on(self) -> list[torch.Tensor]:
        """Remove and return the tokens it waited with."""
        self.wait_steps = 0
        waited, self.waiting = self.waiting, []
        return waited


class Row:
    """One sequence on its way through the segments in one step."""

    def __init__(self, chunk: Chunk, num_segments: int):
        self.chunk = chunk
        self.sequence = chunk.sequence
        if self.sequence.runner_state is None:
            self.sequence.runner_state = PendingStates(num_segments)
        self.pending_states: PendingStates = self.sequence.runner_state
        self.waits = chunk.num_tokens == 0  # has waited at the first exit since an earlier step
        self.votes = False
        self.passed = False  # sticky in `synchronized`
        self.confidence: float | None = None
        self.exit_layer = 0  # where it left, once it has
        self.tokens: list[TokenOutput] = []


class CatchUp(msgspec.Struct):
    """Pending tokens that are only projected: their KV is written beside that of the current tokens."""

    hidden: torch.Tensor  # (P, H), as they left
    both: Batch  # places of these tokens, then of the current ones
    num_fills: int = 0  # keys and values written, counted per token and layer
    ms: float = 0.0  # their share, by tokens, of the products' time

    def note(self, num_behind: int, num_tokens: int, ms: float) -> None:
        """Note a product over `num_tokens` tokens, `num_behind` of which only fill KV."""
        self.num_fills += num_behind
        self.ms += ms * num_behind / num_tokens


class ActiveRows:
    """Rows within a step: hidden states of each row's current tokens, up to its chunk's end."""

    def __init__(self, rows: list[Row], counts: list[int], batch: Batch, hidden: torch.Tensor):
        self.rows = rows
        self.counts = counts
        self.batch = batch
        self.hidden = hidden  # (T, H)
        self.catch_up: CatchUp | None = None  # in the current segment
        self.block_queries: torch.Tensor | None = None  # (T, Hq, D) in the exit head's own layer

    def last(self, indices: list[int]) -> torch.Tensor:
        """The hidden states of some rows' last tokens, (N, H)."""
        return self.hidden[self.last_tokens(indices)]

    def last_tokens(self, indices: list[int]) -> torch.Tensor | slice:
        """Indices of some rows' last tokens."""
        if len(indices) == len(self.rows) == self.hidden.shape[0]:
            return slice(None)
        return self.batch.query_starts[1:][indices] - 1

    def tails(self, indices: list[int], counts: list[int]) -> torch.Tensor | slice:
        """Indices of so many last tokens of some rows."""
        if max(counts) == 1:
            return self.last_tokens(indices)
        ends = list(accumulate(self.counts))
        at = [ends[i] - back for i, n in zip(indices, counts, strict=True) for back in range(n, 0, -1)]
        return torch.tensor(at, device=self.hidden.device)

    def pieces(self) -> list[torch.Tensor]:
        """The hidden states of each row, (count, H)."""
        return list(self.hidden.split(self.counts))


class SegmentedDecoder:
    """Segment s is layers bounds[s] .. bounds[s + 1] of a decoder; the exit behind it is exits[s]."""

    def __init__(
        self, decoder: Decoder, exits: list[Exit], pools: list[KV], make_batch: BatchMaker, fill: Fill
    ):
        self.laps = Laps(make_batch.device)
        self.decoder = decoder
        self.exits = exits
        self.bounds = sorted({0, *(exit_head.layer for exit_head in exits), decoder.depth})
        self._make_batch = make_batch
        self._pools = pools  # by layer of the decoder, exit heads' own layers included
        self._fill = fill

    @property
    def num_segments(self) -> int:
        return len(self.bounds) - 1

    def start(self, rows: list[Row]) -> ActiveRows:
        """Rows after the embedding, with the tokens of their chunks."""
        batch = self._make_batch([row.chunk for row in rows])
        return ActiveRows(rows, [row.chunk.num_tokens for row in rows], batch, self.decoder.embed(batch))

    def activate(self, rows: list[Row], pieces: list[torch.Tensor]) -> ActiveRows:
        """Rows with the hidden states of their current tokens."""
        counts = [len(piece) for piece in pieces]
        return ActiveRows(rows, counts, self._make_batch(_spans(rows, counts)), torch.cat(pieces))

    def enter(self, segment: int, active: ActiveRows | None, joining: list[Row]) -> ActiveRows | None:
        """Enter a segment: waiting rows join, and each row takes up its pending tokens."""
        rows = [*(active.rows if active else []), *joining]
        pending = [row.pending_states.take(segment) for row in rows]
        if active is not None:
            active.catch_up = None
        if not joining and not any(pending):
            return active
        in_hand = [[piece] for piece in active.pieces()] if active else []
        in_hand += [row.pending_states.go_on() for row in joining]
        if self._fill is Fill.RECOMPUTE:
            own = [before + now for before, now in zip(pending, in_hand, strict=True)]
            return self.activate(rows, [torch.cat(pieces) for pieces in own])
        if joining:
            active = self.activate(rows, [torch.cat(pieces) for pieces in in_hand])
        assert active is not None
        active.catch_up = self._catch_up(segment, active, pending)
        return active

    def run(self, segment: int, active: ActiveRows) -> None:
        """Run a segment on active rows; writes its KV, and that of the exit head behind it."""
        for layer in range(self.bounds[segment], self.bounds[segment + 1]):
            queries = self._project(layer, active)
            active.hidden = self.decoder.mix(layer, queries, active.hidden, active.batch, self._pools[layer])
        if segment < len(self.exits) and (block := self.exits[segment].block) is not None:
            active.block_queries = self._project(block, active)

    def features(
        self, segment: int, active: ActiveRows, indices: list[int], counts: list[int] | None = None
    ) -> torch.Tensor:
        """Features (N, F) of some rows' last tokens behind a segment, for the exit's vocabulary.

        `counts` has how many of each row; by default one.
        """
        counts = counts or [1] * len(indices)
        exit_head, at = self.exits[segment], active.tails(indices, counts)
        hidden = active.hidden[at]
        if exit_head.block is not None:
            assert active.block_queries is not None
            spans = _spans([active.rows[i] for i in indices], counts)
            batch, queries = self._make_batch(spans), active.block_queries[at]
            hidden = self.decoder.mix(exit_head.block, queries, hidden, batch, self._pools[exit_head.block])
        return exit_head.features(hidden)

    def _project(self, layer: int, active: ActiveRows) -> torch.Tensor:
        """Write the KV of current and pending tokens; returns queries (T, Hq, D) of the current ones."""
        catch_up, pool = active.catch_up, self._pools[layer]
        if catch_up is None:
            return self.decoder.project(layer, active.hidden, active.batch, pool)
        lap = self.laps.start()
        num_behind, both = len(catch_up.hidden), torch.cat((catch_up.hidden, active.hidden))
        queries = self.decoder.project(layer, both, catch_up.both, pool)
        self.laps.stop(lap, functools.partial(catch_up.note, num_behind, len(both)))
        return queries[num_behind:]

    def _catch_up(
        self, segment: int, active: ActiveRows, pending: list[list[torch.Tensor]]
    ) -> CatchUp | None:
        """Project pending tokens in a segment; they stay pending for the next."""
        spans: list[Chunk] = []
        for row, count, pieces in zip(active.rows, active.counts, pending, strict=True):
            if pieces and segment + 1 < self.num_segments:
                row.pending_states.pending[segment + 1] += pieces
            if num_behind := sum(map(len, pieces)):
                end = row.chunk.end - count
                spans.append(Chunk(row.sequence, end - num_behind, num_behind))
        if not spans:
            return None
        spans += _spans(active.rows, active.counts)
        hidden = torch.cat([piece for pieces in pending for piece in pieces])
        return CatchUp(hidden, self._make_batch(spans))


def _spans(rows: list[Row], counts: list[int]) -> list[Chunk]:
    """Each row's `counts` last tokens, up to its chunk's end."""
    return [Chunk(row.sequence, row.chunk.end - n, n) for row, n in zip(rows, counts, strict=True)]
