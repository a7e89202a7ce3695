"""The sequences on a shard, and the resolution of steps into batches. Real and simulated shards share it.

The router may be behind: the table skips a step's stale attempts and ended sequences, finds blocks
(preempting the youngest sequence when none are free), and returns the batch to run. Knows no tensors.
"""

from collections.abc import Callable, Iterable, Iterator
from itertools import takewhile

import msgspec

from shard.clock import Clock
from shard.engine.block_pool import BlockPool, Keys, Usage
from shard.engine.sequence import Constraint, Sequence
from shard.messages import (
    CacheReport,
    FinishReason,
    NewSequence,
    Score,
    SequenceOutput,
    Step,
    TokenOutput,
    Work,
)

MAX_FORCED = 64  # tokens of a grammar's that follow one that was drawn; more follow the next

Constrain = Callable[[NewSequence], Constraint | None]


class Chunk(msgspec.Struct, frozen=True):
    """Tokens `start .. start + num_tokens` of one sequence, to be computed in this step.

    It has no tokens when the sequence waits at an exit: only the deeper layers are left to run. Its last
    `num_drafts` tokens are guesses: the next token is drawn before each of them too.
    """

    sequence: Sequence
    start: int
    num_tokens: int
    num_drafts: int = 0

    @property
    def end(self) -> int:
        return self.start + self.num_tokens

    @property
    def samples(self) -> bool:
        """True when the chunk ends in the last known token, so that the next one is drawn."""
        return self.end == self.sequence.num_tokens and self.sequence.max_new_tokens > 0

    @property
    def num_draws(self) -> int:
        """Number of tokens drawn: one behind each draft, and one before them."""
        return 1 + self.num_drafts if self.samples else 0

    def standing(self, drawn: list[TokenOutput]) -> list[TokenOutput]:
        """Of the tokens drawn those that stand: all up to the first that is not what was drafted."""
        drafts = self.sequence.token_ids[self.end - self.num_drafts : self.end]
        right = takewhile(lambda pair: pair[0] == pair[1].id, zip(drafts, drawn, strict=False))
        return drawn[: 1 + sum(1 for _ in right)]

    @property
    def decodes(self) -> bool:
        """It ends in a token of the answer, and holds little more than that and what a grammar forced."""
        return self.samples and self.sequence.num_new_tokens > 0 and 0 < self.num_tokens <= MAX_FORCED + 1


def lay_out(sequences: Iterable[NewSequence], block_size: int) -> list[Chunk]:
    """Whole sequences as one chunk each, in the first blocks of an otherwise unused pool."""
    chunks, num_taken = [], 0
    for new in sequences:
        sequence = Sequence(new)
        num_blocks = -(-sequence.num_tokens // block_size)
        sequence.blocks = list(range(num_taken, num_taken + num_blocks))
        num_taken += num_blocks
        chunks.append(Chunk(sequence, 0, sequence.num_tokens))
    return chunks


class SequenceTable:
    """All sequences that hold state on this shard, and their blocks."""

    def __init__(
        self,
        num_blocks: int,
        block_size: int,
        eos_token_ids: list[int],
        max_total_tokens: int,
        constrain: Constrain | None = None,
        caches_prefixes: bool = False,
        clock: Clock | None = None,
    ):
        if max_total_tokens > num_blocks * block_size:
            raise ValueError(f"{num_blocks} blocks of {block_size} cannot hold {max_total_tokens} tokens")
        self._clock = clock or Clock()
        self.pool = BlockPool(num_blocks, self._clock)
        self.block_size = block_size
        self.max_total_tokens = max_total_tokens
        self.eos_token_ids = frozenset(eos_token_ids)
        self.sequences: dict[int, Sequence] = {}
        self._constrain = constrain
        self.caches_prefixes = caches_prefixes
        self.keys = Keys(block_size)
        self._queried = self._hit = self._num_cleared = 0
        self._reported = Usage()
        self.retire: Callable[[Sequence], None] | None = None  # told of every sequence that leaves
        # told when all that was computed is forgotten, with the sequences that go on
        self.cleared: Callable[[list[Sequence]], None] | None = None

    def __len__(self) -> int:
        return len(self.sequences)

    def __contains__(self, id: int) -> bool:
        return id in self.sequences

    def holds(self, sequence: Sequence) -> bool:
        """True unless it has ended, or was dropped, preempted or restarted."""
        return self.sequences.get(sequence.id) is sequence

    @property
    def num_blocks_to_finish(self) -> list[int]:
        """For each sequence, its blocks if it grows to its limit."""
        return [self._num_blocks_to_finish(sequence) for sequence in self.sequences.values()]

    def could_hold(self, new: NewSequence) -> bool:
        """True if the sequence alone would fit at its full length."""
        return self._num_blocks_to_finish(Sequence(new)) <= self.pool.num_blocks

    def repack(self, num_blocks: int) -> list[int]:
        """Change the number of blocks. Those in use move to the front, behind them what free ones hold.

        Returns the old numbers of the first blocks, in order. What has no room is evicted.
        """
        before, held = self.pool, self.held_blocks
        keys = before.keys(held) | dict(before.latest(num_blocks - len(held)))
        kept = list(dict.fromkeys([*held, *keys]))
        self.pool = BlockPool(num_blocks, self._clock, before.usage)
        self.pool.usage.evicted_blocks += before.num_known - len(keys)
        number_of = dict(zip(kept, self.pool.take(len(kept)), strict=True))
        for block, key in keys.items():
            self.pool.enter(number_of[block], key)
        for sequence in self.sequences.values():
            sequence.blocks = [number_of[block] for block in sequence.blocks]
            self.pool.share(sequence.blocks)
        self.pool.give_back(list(number_of.values()))
        return kept

    def inherit(self, other: "SequenceTable", max_blocks: int) -> dict[int, int]:
        """Take over what another table's blocks hold, the latest first; returns our block by its block.

        Only while this one has no sequence and no content. The caller copies keys and values.
        """
        keys = other.pool.keys(other.held_blocks)
        keys |= dict(other.pool.latest(max_blocks))
        keys = dict(list(keys.items())[: min(max_blocks, self.pool.num_free)])
        self.keys = other.keys
        number_of = dict(zip(keys, self.pool.take(len(keys)), strict=True))
        for block, key in keys.items():
            self.pool.enter(number_of[block], key)
        self.pool.give_back(list(number_of.values()))
        return number_of

    def clear_cache(self) -> None:
        """Let nothing be found that was computed so far."""
        self._num_cleared += self.pool.clear()
        if self.cleared is not None:
            self.cleared(list(self.sequences.values()))

    def forget(self, id: int) -> None:
        """Drop a sequence of any attempt: a newer one runs elsewhere."""
        self._remove(id)

    def plan(self, step: Step) -> tuple[list[Chunk], list[tuple[int, int]]]:
        """The batch to run for a step, and (id, attempt) of the sequences preempted to make room for it."""
        if step.clears_cache:
            self.clear_cache()
        for id, attempt in step.drop:
            self._drop(id, attempt)
        for new in step.new:
            self._remove(new.id)
            sequence = self.sequences[new.id] = Sequence(new)
            if self._constrain is not None:
                sequence.constraint = self._constrain(new)
            self._begin(sequence)
        chunks: dict[int, Chunk] = {}
        preempted: list[tuple[int, int]] = []
        for work in step.work:
            chunk = self._chunk(work)
            if chunk is not None and self._make_room(chunk, chunks, preempted):
                chunks[work.id] = chunk
        return list(chunks.values()), preempted

    def finish(
        self,
        chunk: Chunk,
        tokens: list[TokenOutput],
        prompt: list[TokenOutput] | None = None,
        scores: list[Score] | None = None,
    ) -> SequenceOutput:
        """Apply a step's results for one chunk: its new tokens, and whether the sequence has ended.

        `tokens` are in order; those after an end are dropped, and what a grammar forces is added behind them.
        `prompt` scores the chunk's prompt tokens, `scores` its answer tokens.
        """
        sequence = chunk.sequence
        kept: list[TokenOutput] = []
        finish = None
        for token in tokens:
            sequence.token_ids.append(token.id)
            kept.append(token)
            finish = sequence.finish_reason(self.eos_token_ids, self.max_total_tokens)
            if finish is not None:
                break
        sequence.num_computed_tokens = chunk.end + max(0, len(kept) - 1)  # the newest has no KV yet
        if kept and finish is None:
            forced, finish = self._force(sequence)
            kept += forced
        if not tokens and not sequence.num_pending_tokens and not sequence.waits:  # only scored
            finish = sequence.finish_reason(self.eos_token_ids, self.max_total_tokens)
        self._keep(sequence)
        if sequence.error:
            self._remove(sequence.id)
            return SequenceOutput(
                sequence.id, sequence.attempt, sequence.num_computed_tokens, error=sequence.error
            )
        if finish is not None:
            self._remove(sequence.id)
        return SequenceOutput(
            sequence.id,
            sequence.attempt,
            sequence.num_computed_tokens,
            kept,
            prompt or [],
            finish,
            scores or [],
            num_cached_tokens=sequence.num_cached_tokens if chunk.start == sequence.num_cached_tokens else 0,
        )

    def take_report(self) -> CacheReport | None:
        """What the prefix cache did since the last report; None without one."""
        if not self.caches_prefixes:
            return None
        usage, before = self.pool.usage, self._reported
        report = CacheReport(
            self._queried,
            self._hit,
            usage.evicted_blocks - before.evicted_blocks,
            self.pool.num_cached,
            self.pool.num_known,
            self._num_cleared,
            usage.evicted_age_ms - before.evicted_age_ms,
            usage.reused_blocks - before.reused_blocks,
            usage.reused_gap_ms - before.reused_gap_ms,
        )
        self._queried = self._hit = self._num_cleared = 0
        self._reported = msgspec.structs.replace(usage)
        return report

    @property
    def held_blocks(self) -> list[int]:
        """Blocks that sequences use."""
        return list(dict.fromkeys(block for s in self.sequences.values() for block in s.blocks))

    def _begin(self, sequence: Sequence) -> None:
        """Take what is computed already of a new sequence; at least one token is left to compute."""
        if not self.caches_prefixes or sequence.is_scored:
            return
        most = sequence.num_tokens - 1
        for key in self._keys_of(sequence, most // self.block_size):
            block = self.pool.find(key)
            if block is None:
                break
            sequence.blocks.append(block)
            sequence.last_key = key
        self.pool.share(sequence.blocks)
        sequence.num_keyed_blocks = len(sequence.blocks)
        sequence.num_computed_tokens = sequence.num_cached_tokens = len(sequence.blocks) * self.block_size
        self._queried += most
        self._hit += sequence.num_cached_tokens

    def _keep(self, sequence: Sequence) -> None:
        """Let others find the blocks that a sequence has filled, as far as their KV is final."""
        num_full = sequence.num_final_tokens // self.block_size
        if not self.caches_prefixes or sequence.is_scored or num_full <= sequence.num_keyed_blocks:
            return
        for key in self._keys_of(sequence, num_full):
            self.pool.enter(sequence.blocks[sequence.num_keyed_blocks], key)
            sequence.num_keyed_blocks += 1
            sequence.last_key = key

    def _keys_of(self, sequence: Sequence, end: int) -> Iterator[bytes]:
        """The keys of a sequence's blocks behind those that have theirs, up to block `end`."""
        before = sequence.last_key or self.keys.first(sequence.cache_salt)
        return self.keys.follow(before, sequence.token_ids, sequence.num_keyed_blocks, end)

    def _force(self, sequence: Sequence) -> tuple[list[TokenOutput], FinishReason | None]:
        """Append what the grammar leaves no choice about; it is computed with the next token."""
        forced: list[TokenOutput] = []
        while len(forced) < MAX_FORCED and (id := sequence.forced_token) is not None:
            assert sequence.constraint is not None
            sequence.constraint.note_forced()
            sequence.token_ids.append(id)
            forced.append(TokenOutput(id, 0.0, 0))
            finish = sequence.finish_reason(self.eos_token_ids, self.max_total_tokens)
            if finish is not None:
                return forced, finish
        return forced, None

    def reserve(self, sequence: Sequence, num_tokens: int) -> bool:
        """Take blocks for a sequence's first `num_tokens` tokens; False if too few are free.

        One for each sequence is left: what may be drafted must not take what will be needed.
        """
        missing = -(-num_tokens // self.block_size) - len(sequence.blocks)
        if num_tokens > self.max_total_tokens:
            return False
        if missing > 0:
            if missing > self.pool.num_free - len(self.sequences):
                return False
            sequence.blocks.extend(self.pool.take(missing))
        return True

    def reserve_more(self, sequence: Sequence, num_more: int) -> int:
        """Take blocks for up to `num_more` tokens behind a sequence's own; how many of them have a place."""
        if self.reserve(sequence, sequence.num_tokens + num_more):
            return num_more
        num_held = min(len(sequence.blocks) * self.block_size, self.max_total_tokens)
        return max(0, min(num_more, num_held - sequence.num_tokens))

    def _num_blocks_to_finish(self, sequence: Sequence) -> int:
        return -(-min(sequence.max_tokens, self.max_total_tokens) // self.block_size)

    def _chunk(self, work: Work) -> Chunk | None:
        sequence = self.sequences.get(work.id)
        if sequence is None or sequence.attempt != work.attempt:
            return None
        num_pending = sequence.num_pending_tokens
        is_forced = (
            sequence.num_computed_tokens >= sequence.num_prompt_tokens and num_pending <= MAX_FORCED + 1
        )
        num_tokens = num_pending if is_forced else min(work.num_tokens, num_pending)  # the router knows later
        if sequence.holds_back:
            num_tokens = min(num_tokens, num_pending - 1)
        if num_tokens <= 0 and not sequence.waits:
            return None
        return Chunk(sequence, sequence.num_computed_tokens, num_tokens)

    def _make_room(self, chunk: Chunk, chunks: dict[int, Chunk], preempted: list[tuple[int, int]]) -> bool:
        """Take blocks for a chunk, preempting the youngest; False if the chunk itself was preempted."""
        sequence = chunk.sequence
        missing = -(-chunk.end // self.block_size) - len(sequence.blocks)
        while missing > self.pool.num_free:
            victim = self._youngest_with_blocks(sequence)
            self._remove(victim.id)
            chunks.pop(victim.id, None)
            preempted.append((victim.id, victim.attempt))
            if victim is sequence:
                return False
        if missing > 0:
            sequence.blocks.extend(self.pool.take(missing))
        return True

    def _youngest_with_blocks(self, asking: Sequence) -> Sequence:
        candidates = [s for s in self.sequences.values() if s.blocks or s is asking]
        return max(candidates, key=lambda s: s.id)

    def _drop(self, id: int, attempt: int) -> None:
        sequence = self.sequences.get(id)
        if sequence is not None and sequence.attempt == attempt:
            self._remove(id)

    def _remove(self, id: int) -> None:
        sequence = self.sequences.pop(id, None)
        if sequence is not None:
            self.pool.give_back(sequence.blocks)
            sequence.blocks = []
            if self.retire is not None:
                self.retire(sequence)
