"""The table of sequences: nothing stale runs, no block is lost or held twice, the oldest always goes on."""

import random
from typing import Any

import pytest

from shard.engine.block_pool import BlockPool
from shard.engine.sequence_table import SequenceTable
from shard.messages import FinishReason, NewSequence, Sampling, Step, TokenOutput, Work

EOS = 2


def token(id: int) -> TokenOutput:
    return TokenOutput(id, -1.0, 4)


def new(id: int, length: int, attempt: int = 0, max_new_tokens: int = 4, **fields) -> NewSequence:
    return NewSequence(id, attempt, [5] * length, length, max_new_tokens, **fields)


def table(num_blocks: int = 4, max_total_tokens: int = 16) -> SequenceTable:
    return SequenceTable(num_blocks, 4, [EOS], max_total_tokens)


def test_a_chunk_never_exceeds_what_is_known():
    chunks, _ = table().plan(Step(0, [Work(1, 0, 100)], [new(1, 6)]))
    assert [(c.start, c.num_tokens, c.samples) for c in chunks] == [(0, 6, True)]


def test_a_prompt_in_parts_samples_after_the_last():
    shard = table()
    chunks, _ = shard.plan(Step(0, [Work(1, 0, 4)], [new(1, 6)]))
    assert not chunks[0].samples
    shard.finish(chunks[0], [])
    chunks, _ = shard.plan(Step(1, [Work(1, 0, 4)]))
    assert [(c.start, c.num_tokens, c.samples) for c in chunks] == [(4, 2, True)]


def test_stale_attempts_and_unknown_sequences_are_ignored():
    shard = table()
    shard.plan(Step(0, [], [new(1, 3, attempt=2)]))
    chunks, _ = shard.plan(Step(1, [Work(1, 1, 3), Work(9, 0, 1)]))
    assert chunks == []
    shard.plan(Step(2, [], drop=[(1, 1)]))
    assert len(shard) == 1
    shard.plan(Step(3, [], drop=[(1, 2)]))
    assert len(shard) == 0


@pytest.mark.parametrize(
    ("drawn", "ignore_eos", "kept", "reason"),
    [
        ([7], False, [7], None),
        ([EOS], False, [EOS], FinishReason.EOS),
        ([EOS], True, [EOS], None),
        ([7, EOS, 8], False, [7, EOS], FinishReason.EOS),
        ([7, 8, 9, 10, 11], False, [7, 8, 9, 10], FinishReason.LENGTH),
    ],
)
def test_ends_are_found_and_what_follows_is_dropped(drawn, ignore_eos, kept, reason):
    shard = table()
    chunks, _ = shard.plan(Step(0, [Work(1, 0, 3)], [new(1, 3, ignore_eos=ignore_eos)]))
    output = shard.finish(chunks[0], [token(id) for id in drawn])
    assert [t.id for t in output.tokens] == kept
    assert output.finish == reason
    assert len(shard) == (0 if reason else 1)
    assert (shard.pool.num_free == 4) == bool(reason)


def test_an_eos_in_the_prompt_ends_nothing():
    shard = table()
    prompt = NewSequence(1, 0, [5, EOS], 2, 0, sampling=Sampling(prompt_logprobs=True))
    chunks, _ = shard.plan(Step(0, [Work(1, 0, 1)], [prompt]))
    assert shard.finish(chunks[0], []).finish is None
    chunks, _ = shard.plan(Step(1, [Work(1, 0, 1)]))
    assert not chunks[0].samples
    assert shard.finish(chunks[0], []).finish is FinishReason.LENGTH


def test_the_youngest_gives_way_and_says_so():
    shard = table()
    shard.plan(Step(0, [Work(1, 0, 8), Work(2, 0, 8)], [new(1, 8, max_new_tokens=9), new(2, 8)]))
    for sequence in list(shard.sequences.values()):
        sequence.num_computed_tokens = 8
        sequence.token_ids.append(7)
    chunks, preempted = shard.plan(Step(1, [Work(1, 0, 1), Work(2, 0, 1)]))
    assert [c.sequence.id for c in chunks] == [1]
    assert preempted == [(2, 0)]
    assert shard.pool.num_free == 1


def test_a_younger_one_that_finds_no_room_takes_none_from_the_older():
    shard = table()
    shard.plan(Step(0, [Work(1, 0, 15)], [new(1, 15)]))
    chunks, preempted = shard.plan(Step(1, [Work(2, 0, 3)], [new(2, 3)]))
    assert chunks == []
    assert preempted == [(2, 0)]


def test_a_longest_sequence_must_fit():
    with pytest.raises(ValueError, match="cannot hold"):
        table(num_blocks=3)


def test_blocks_are_neither_lost_nor_held_twice():
    """Random steps, ends, drops and preemptions: free and held blocks are always all blocks, once each."""
    draw = random.Random(1)
    shard, next_id = table(8, 24), 0
    live: dict[int, Any] = {}
    for number in range(3000):
        drops = [(id, 0) for id in live if draw.random() < 0.03]
        fresh = []
        if len(live) < 6 and draw.random() < 0.5:
            fresh = [new(next_id, draw.randint(1, 12), max_new_tokens=draw.randint(1, 10))]
            live[next_id] = 0
            next_id += 1
        work = [Work(id, 0, draw.randint(1, 8)) for id in live if draw.random() < 0.9]
        chunks, preempted = shard.plan(Step(number, work, fresh, drops))
        for id in [id for id, _ in preempted] + [id for id, _ in drops]:
            live.pop(id, None)
        for chunk in chunks:
            drawn = [token(draw.choice([EOS, 7, 8, 9]))] if chunk.samples else []
            if shard.finish(chunk, drawn).finish:
                live.pop(chunk.sequence.id)
        held = [block for sequence in shard.sequences.values() for block in sequence.blocks]
        assert sorted(held + shard.pool.free) == list(range(8))
        assert set(shard.sequences) == set(live)


def test_the_pool_hands_out_each_block_once():
    pool = BlockPool(5)
    taken = pool.take(3)
    assert pool.num_free == 2
    pool.give_back(taken)
    assert sorted(pool.take(5)) == [0, 1, 2, 3, 4]
