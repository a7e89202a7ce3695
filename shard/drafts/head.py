"""`head`: drafts by a trained head, which reads the hidden states of the model's last pass.

Its keys and values lie in the sequences' own blocks, in a pool of their own: what was refused is
overwritten, preemption and moved blocks need nothing, and blocks of the prefix cache still have them. The one
position behind a cached prefix, whose states nobody has, is read as a text's first: with zeros for states.
"""

import math

import msgspec
import torch

from shard.drafts.drafter import NUM_GRADES, Draft, Passed
from shard.drafts.trained_head import TrainedHead
from shard.engine.sampler import Draw, Sampler
from shard.engine.sequence import Sequence
from shard.engine.sequence_table import Chunk
from shard.engine.step_inputs import BatchMaker
from shard.messages import DrafterKind
from shard.ops.batch import KV


class Unwritten(msgspec.Struct):
    """The positions of one sequence from `start` on, whose keys and values are not written yet.

    `states` (n, D, H) in pieces: one before each of these positions. The last one's token is not computed.
    """

    start: int
    states: list[torch.Tensor]

    @property
    def end(self) -> int:
        return self.start + sum(map(len, self.states))


class HeadDrafter:
    """Drafts by a trained head for all sequences together.

    Of a sequence it keeps states for fewer tokens than a block has, until its next draft or until the block
    is full: whoever finds that block in the prefix cache finds the head's keys and values too.
    """

    name = DrafterKind.HEAD
    is_free = False

    def __init__(self, head: TrainedHead, pools: list[KV], make_batch: BatchMaker, sampler: Sampler):
        self._head = head
        self._pools = pools
        self._make_batch = make_batch
        self._sampler = sampler
        self._unwritten: dict[Sequence, Unwritten] = {}

    @property
    def layers(self) -> tuple[int, ...]:
        return self._head.description.layers

    @property
    def num_bytes(self) -> int:
        """Bytes of hidden states that it keeps."""
        return sum(piece.nbytes for one in self._unwritten.values() for piece in one.states)

    def propose(self, sequences: list[Sequence], max_lengths: list[int]) -> list[Draft]:
        """As many guesses as allowed for each sequence whose tokens but the last are computed."""
        drafts = [Draft([], []) for _ in sequences]
        rows = [i for i, sequence in enumerate(sequences) if max_lengths[i] and self._knows(sequence)]
        num_known = [sequence.num_tokens for sequence in sequences]
        try:
            out = self._first([sequences[i] for i in rows]) if rows else None
            while rows and out is not None:
                self._draw([sequences[i] for i in rows], [drafts[i] for i in rows], out)
                stay = [at for at, i in enumerate(rows) if len(drafts[i]) < max_lengths[i]]
                rows = [rows[at] for at in stay]
                if rows:
                    out = self._next([sequences[i] for i in rows], out[stay])
        finally:
            for sequence, known in zip(sequences, num_known, strict=True):
                del sequence.token_ids[known:]
        return drafts

    def note(self, passed: list[Passed]) -> None:
        """Keep the new states, and write the keys and values of those whose block is full."""
        full = []
        for one in passed:
            unwritten = self._unwritten.get(one.sequence)
            if unwritten is None or unwritten.end != one.start + 1:
                unwritten = Unwritten(one.start, [self._head.nothing_before()])
                self._unwritten[one.sequence] = unwritten
            unwritten.states.append(torch.stack(one.states, dim=1))
            size = self._make_batch.block_size
            if (unwritten.end - 1) // size > unwritten.start // size:
                full.append(one.sequence)
        if full:
            self._write(full)

    def retire(self, sequence: Sequence) -> None:
        """Forget a sequence's states."""
        self._unwritten.pop(sequence, None)

    def clear(self, running: list[Sequence]) -> None:
        """Nothing: of each sequence it knows its own states alone."""

    def _knows(self, sequence: Sequence) -> bool:
        """The states of all its tokens but the last are there; not so behind tokens that a grammar forced."""
        unwritten = self._unwritten.get(sequence)
        return unwritten is not None and unwritten.end == sequence.num_tokens

    def _write(self, sequences: list[Sequence]) -> None:
        """Write keys and values up to the last token computed; the one behind it may not be known yet."""
        chunks, states = [], []
        for sequence in sequences:
            unwritten = self._unwritten[sequence]
            pieces = torch.cat(unwritten.states)
            chunks.append(Chunk(sequence, unwritten.start, len(pieces) - 1))
            states.append(pieces[:-1])
            unwritten.start, unwritten.states = unwritten.end - 1, [pieces[-1:].clone()]
        batch = self._make_batch(chunks)
        self._head.write(self._head.fused(torch.cat(states), batch.token_ids), batch, self._pools)

    def _first(self, sequences: list[Sequence]) -> torch.Tensor:
        """Outputs (B, H) at each sequence's last token, from the model's states."""
        chunks, states = [], []
        for sequence in sequences:
            unwritten = self._unwritten[sequence]
            chunks.append(Chunk(sequence, unwritten.start, unwritten.end - unwritten.start))
            states += unwritten.states
            unwritten.start, unwritten.states = unwritten.end, []
        batch = self._make_batch(chunks)
        hidden = self._head.fused(torch.cat(states), batch.token_ids)
        queries = self._head.write(hidden, batch, self._pools)
        if len(hidden) > len(chunks):
            at = batch.query_starts[1:] - 1
            batch = self._make_batch([Chunk(chunk.sequence, chunk.end - 1, 1) for chunk in chunks])
            queries, hidden = queries[at], hidden[at]
        return self._head.read(queries, hidden, batch, self._pools)

    def _next(self, sequences: list[Sequence], out: torch.Tensor) -> torch.Tensor:
        """Outputs (B, H) at the tokens just drafted, from those before."""
        batch = self._make_batch([Chunk(sequence, sequence.num_tokens - 1, 1) for sequence in sequences])
        hidden = self._head.fused_again(out, batch.token_ids)
        queries = self._head.write(hidden, batch, self._pools)
        return self._head.read(queries, hidden, batch, self._pools)

    def _draw(self, sequences: list[Sequence], drafts: list[Draft], out: torch.Tensor) -> None:
        """Draw a token for each sequence with its position's noise, into its draft and behind its tokens."""
        draws = [Draw(sequence, sequence.num_tokens, 0) for sequence in sequences]
        drawn = self._sampler.choose(self._head.logits(out), draws)
        for sequence, draft, token in zip(sequences, drafts, drawn, strict=True):
            draft.token_ids.append(token.id)
            draft.grades.append(_grade(math.exp(token.logprob)))
            sequence.token_ids.append(token.id)


def _grade(probability: float) -> int:
    """Guesses that the head finds about equally likely have one grade."""
    return min(NUM_GRADES - 1, int(probability * NUM_GRADES))
