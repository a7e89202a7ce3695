"""A decoder cut into segments at its exits, and rows on their way through them."""

import msgspec
import torch

from shard.batch import Chunk
from shard.batch_tensors import BatchMaker
from shard.exits import Exit
from shard.messages import TokenOutput
from shard.models.load import Decoder
from shard.ops.batch import KV, Batch


class Carried(msgspec.Struct):
    """What a sequence carries from step to step."""

    pending: list[torch.Tensor | None]  # by segment: hidden states (n, H) of tokens that have not entered it
    wait_steps: int = 0  # so long it has waited at the first exit

    @property
    def has_pending(self) -> bool:
        """True when some layers were not run for some of its tokens."""
        return any(hidden is not None for hidden in self.pending)

    def keep(self, segment: int, hidden: torch.Tensor) -> None:
        """Tokens (n, H) that stop in front of a segment."""
        before = self.pending[segment]
        self.pending[segment] = hidden if before is None else torch.cat((before, hidden))

    def take(self, segment: int) -> list[torch.Tensor]:
        """All that waits in front of a segment: one tensor, or none."""
        taken, self.pending[segment] = self.pending[segment], None
        return [] if taken is None else [taken]


class Row:
    """One sequence on its way through the segments in one step."""

    def __init__(self, chunk: Chunk, num_segments: int):
        self.chunk = chunk
        self.sequence = chunk.sequence
        if self.sequence.carried is None:
            self.sequence.carried = Carried([None] * num_segments)
        self.carried: Carried = self.sequence.carried
        self.waits = chunk.num_tokens == 0  # at the first exit, since an earlier step
        self.votes = False
        self.passed = False  # sticky in `synchronized`
        self.confidence: float | None = None
        self.exit_layer = 0  # where it left, once it has
        self.tokens: list[TokenOutput] = []


class Front:
    """How far some rows have come: hidden states of the tokens each has in hand, up to its chunk's end."""

    def __init__(self, rows: list[Row], counts: list[int], batch: Batch, hidden: torch.Tensor):
        self.rows = rows
        self.counts = counts
        self.batch = batch
        self.hidden = hidden  # (T, H)

    def last(self, indices: list[int]) -> torch.Tensor:
        """The hidden states of some rows' last tokens, (N, H)."""
        if len(indices) == len(self.rows) == self.hidden.shape[0]:
            return self.hidden
        return self.hidden[self.batch.query_starts[1:][indices] - 1]

    def pieces(self) -> list[torch.Tensor]:
        """The hidden states of each row, (count, H)."""
        return list(self.hidden.split(self.counts))


class Stack:
    """Segment s is layers bounds[s] .. bounds[s + 1] of a decoder; the exit behind it is exits[s]."""

    def __init__(self, decoder: Decoder, exits: list[Exit], pools: list[KV], make_batch: BatchMaker):
        self.decoder = decoder
        self.exits = exits
        self.bounds = sorted({0, *(exit.layer for exit in exits), decoder.depth})
        self._make_batch = make_batch
        self._pools = pools  # by layer of the decoder, exit heads' own layers included

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
        spans = [Chunk(row.sequence, row.chunk.end - n, n) for row, n in zip(rows, counts, strict=True)]
        return Front(rows, counts, self._make_batch(spans), torch.cat(pieces))

    def enter(self, segment: int, front: Front | None, joining: list[Row]) -> Front | None:
        """A front at a segment's door: rows that waited there join, each takes up what it left there."""
        rows = [*(front.rows if front else []), *joining]
        if not joining and all(row.carried.pending[segment] is None for row in rows):
            return front
        in_hand = [[piece] for piece in front.pieces()] if front else []
        in_hand += [[] for _ in joining]
        taken = [row.carried.take(segment) + own for row, own in zip(rows, in_hand, strict=True)]
        return self.front(rows, [torch.cat(pieces) for pieces in taken])

    def run(self, segment: int, front: Front) -> None:
        """Take a front through a segment; writes its KV, and that of the exit head behind it."""
        for layer in range(self.bounds[segment], self.bounds[segment + 1]):
            front.hidden = self.decoder.run_layer(layer, front.hidden, front.batch, self._pools[layer])
        if segment < len(self.exits) and (block := self.exits[segment].block) is not None:
            self.decoder.write_kv(block, front.hidden, front.batch, self._pools[block])

    def features(self, segment: int, front: Front, indices: list[int]) -> torch.Tensor:
        """What the exit's vocabulary reads of some rows' last tokens behind a segment, (N, F)."""
        exit, hidden = self.exits[segment], front.last(indices)
        if exit.block is not None:
            spans = [Chunk(front.rows[i].sequence, front.rows[i].chunk.end - 1, 1) for i in indices]
            batch = self._make_batch(spans)
            hidden = self.decoder.run_layer(exit.block, hidden, batch, self._pools[exit.block])
        return exit.features(hidden)

    def fill(self, segment: int, front: Front) -> int:
        """Project a front's hidden states into the KV of all layers from a segment on; how many."""
        layers = list(range(self.bounds[segment], self.decoder.depth))
        layers += [exit.block for exit in self.exits[segment:] if exit.block is not None]
        for layer in layers:
            self.decoder.write_kv(layer, front.hidden, front.batch, self._pools[layer])
        return len(layers) * front.hidden.shape[0]
