"""A decoder cut into segments at its exits, and rows on their way through them.

What a row leaves undone when it leaves early is kept: the hidden state of each token at the boundary where it
stopped. When the row next enters a segment, those tokens are caught up with there. Under `recompute` they run
through it before the newest one. Under `project` (Miao et al. 2024) their hidden states, unchanged, become
its keys and values: what filling at every exit would write, but all at once and beside the newest token's, in
a product that runs anyway; and never for a sequence that ends before.
"""

import functools

import msgspec
import torch

from shard.engine.sequence_table import Chunk
from shard.engine.step_inputs import BatchMaker
from shard.exits.exit_heads import Exit
from shard.messages import Fill, TokenOutput
from shard.models.load import Decoder
from shard.ops.batch import KV, Batch
from shard.stopwatch import Laps


class Carried:
    """What a sequence carries from step to step: hidden states (n, H), in the order of its tokens."""

    def __init__(self, num_segments: int):
        self.pending: list[list[torch.Tensor]] = [[] for _ in range(num_segments)]  # that have not entered it
        self.waiting: list[torch.Tensor] = []  # in hand, while it waits at the first exit
        self.wait_steps = 0

    @property
    def has_pending(self) -> bool:
        """True when some layers were not run for some of its tokens."""
        return any(self.pending)

    def keep(self, segment: int, hidden: torch.Tensor) -> None:
        """Tokens (n, H) that stop in front of a segment. Copied: a view would keep a whole step's alive."""
        self.pending[segment].append(hidden.clone())

    def take(self, segment: int) -> list[torch.Tensor]:
        """All that is pending in front of a segment."""
        taken, self.pending[segment] = self.pending[segment], []
        return taken

    def wait(self, hidden: torch.Tensor) -> None:
        """Tokens (n, H) in hand, which stop at the first exit for now."""
        self.waiting.append(hidden.clone())

    def go_on(self) -> list[torch.Tensor]:
        """What it waited with."""
        self.wait_steps = 0
        waited, self.waiting = self.waiting, []
        return waited


class Row:
    """One sequence on its way through the segments in one step."""

    def __init__(self, chunk: Chunk, num_segments: int):
        self.chunk = chunk
        self.sequence = chunk.sequence
        if self.sequence.carried is None:
            self.sequence.carried = Carried(num_segments)
        self.carried: Carried = self.sequence.carried
        self.waits = chunk.num_tokens == 0  # at the first exit, since an earlier step
        self.votes = False
        self.passed = False  # sticky in `synchronized`
        self.confidence: float | None = None
        self.exit_layer = 0  # where it left, once it has
        self.tokens: list[TokenOutput] = []


class Behind(msgspec.Struct):
    """Tokens that a front only projects: their KV is written beside that of those in hand."""

    hidden: torch.Tensor  # (P, H), as they left
    both: Batch  # where they stand, and after them those in hand
    num_fills: int = 0  # keys and values written, counted per token and layer
    ms: float = 0.0  # their share, by tokens, of the time of such products

    def note(self, num_behind: int, num_tokens: int, ms: float) -> None:
        """One product over so many tokens, of which so many only fill."""
        self.num_fills += num_behind
        self.ms += ms * num_behind / num_tokens


class Front:
    """How far some rows have come: hidden states of the tokens each has in hand, up to its chunk's end."""

    def __init__(self, rows: list[Row], counts: list[int], batch: Batch, hidden: torch.Tensor):
        self.rows = rows
        self.counts = counts
        self.batch = batch
        self.hidden = hidden  # (T, H)
        self.behind: Behind | None = None  # in the segment that it is in
        self.block_queries: torch.Tensor | None = None  # (T, Hq, D) of the exit head's own layer

    def last(self, indices: list[int]) -> torch.Tensor:
        """The hidden states of some rows' last tokens, (N, H)."""
        return self.hidden[self.last_tokens(indices)]

    def last_tokens(self, indices: list[int]) -> torch.Tensor | slice:
        """Where the last tokens of some rows stand."""
        if len(indices) == len(self.rows) == self.hidden.shape[0]:
            return slice(None)
        return self.batch.query_starts[1:][indices] - 1

    def pieces(self) -> list[torch.Tensor]:
        """The hidden states of each row, (count, H)."""
        return list(self.hidden.split(self.counts))


class Stack:
    """Segment s is layers bounds[s] .. bounds[s + 1] of a decoder; the exit behind it is exits[s]."""

    def __init__(
        self, decoder: Decoder, exits: list[Exit], pools: list[KV], make_batch: BatchMaker, fill: Fill
    ):
        self.laps = Laps(make_batch.device)
        self.decoder = decoder
        self.exits = exits
        self.bounds = sorted({0, *(exit.layer for exit in exits), decoder.depth})
        self._make_batch = make_batch
        self._pools = pools  # by layer of the decoder, exit heads' own layers included
        self._fill = fill

    @property
    def num_segments(self) -> int:
        return len(self.bounds) - 1

    def start(self, rows: list[Row]) -> Front:
        """Rows at the embedding, with the tokens of their chunks."""
        batch = self._make_batch([row.chunk for row in rows])
        return Front(rows, [row.chunk.num_tokens for row in rows], batch, self.decoder.embed(batch))

    def front(self, rows: list[Row], pieces: list[torch.Tensor]) -> Front:
        """Rows with the hidden states of the tokens they have in hand."""
        counts = [len(piece) for piece in pieces]
        return Front(rows, counts, self._make_batch(_spans(rows, counts)), torch.cat(pieces))

    def enter(self, segment: int, front: Front | None, joining: list[Row]) -> Front | None:
        """A front at a segment's door: rows that waited there join, each takes up what it left there."""
        rows = [*(front.rows if front else []), *joining]
        pending = [row.carried.take(segment) for row in rows]
        if front is not None:
            front.behind = None
        if not joining and not any(pending):
            return front
        in_hand = [[piece] for piece in front.pieces()] if front else []
        in_hand += [row.carried.go_on() for row in joining]
        if self._fill is Fill.RECOMPUTE:
            own = [before + now for before, now in zip(pending, in_hand, strict=True)]
            return self.front(rows, [torch.cat(pieces) for pieces in own])
        if joining:
            front = self.front(rows, [torch.cat(pieces) for pieces in in_hand])
        assert front is not None
        front.behind = self._behind(segment, front, pending)
        return front

    def run(self, segment: int, front: Front) -> None:
        """Take a front through a segment; writes its KV, and that of the exit head behind it."""
        for layer in range(self.bounds[segment], self.bounds[segment + 1]):
            queries = self._project(layer, front)
            front.hidden = self.decoder.mix(layer, queries, front.hidden, front.batch, self._pools[layer])
        if segment < len(self.exits) and (block := self.exits[segment].block) is not None:
            front.block_queries = self._project(block, front)

    def features(self, segment: int, front: Front, indices: list[int]) -> torch.Tensor:
        """What the exit's vocabulary reads of some rows' last tokens behind a segment, (N, F)."""
        exit, at = self.exits[segment], front.last_tokens(indices)
        hidden = front.hidden[at]
        if exit.block is not None:
            assert front.block_queries is not None
            spans = [Chunk(front.rows[i].sequence, front.rows[i].chunk.end - 1, 1) for i in indices]
            batch, queries = self._make_batch(spans), front.block_queries[at]
            hidden = self.decoder.mix(exit.block, queries, hidden, batch, self._pools[exit.block])
        return exit.features(hidden)

    def _project(self, layer: int, front: Front) -> torch.Tensor:
        """Write the KV of all that a front carries; the queries (T, Hq, D) of what it has in hand."""
        behind, pool = front.behind, self._pools[layer]
        if behind is None:
            return self.decoder.project(layer, front.hidden, front.batch, pool)
        lap = self.laps.start()
        num_behind, both = len(behind.hidden), torch.cat((behind.hidden, front.hidden))
        queries = self.decoder.project(layer, both, behind.both, pool)
        self.laps.stop(lap, functools.partial(behind.note, num_behind, len(both)))
        return queries[num_behind:]

    def _behind(self, segment: int, front: Front, pending: list[list[torch.Tensor]]) -> Behind | None:
        """What is pending goes along through a segment, and stays pending for the next."""
        spans: list[Chunk] = []
        for row, count, pieces in zip(front.rows, front.counts, pending, strict=True):
            if pieces and segment + 1 < self.num_segments:
                row.carried.pending[segment + 1] += pieces
            if num_behind := sum(map(len, pieces)):
                end = row.chunk.end - count
                spans.append(Chunk(row.sequence, end - num_behind, num_behind))
        if not spans:
            return None
        spans += _spans(front.rows, front.counts)
        hidden = torch.cat([piece for pieces in pending for piece in pieces])
        return Behind(hidden, self._make_batch(spans))


def _spans(rows: list[Row], counts: list[int]) -> list[Chunk]:
    """The tokens that rows have in hand: so many, up to their chunks' ends."""
    return [Chunk(row.sequence, row.chunk.end - n, n) for row, n in zip(rows, counts, strict=True)]
