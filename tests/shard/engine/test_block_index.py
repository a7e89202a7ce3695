"""The index of blocks is a dict in little memory."""

import random
import sys

import pytest

from shard.engine.block_index import BlockIndex
from shard.engine.block_pool import BlockPool


@pytest.mark.parametrize("num_blocks", [1, 2, 3, 61, 64, 300])
def test_it_finds_what_a_dict_finds(num_blocks: int) -> None:
    """Keys that begin probing at few places, so that they stand in each other's way."""
    draw, index, expected = random.Random(num_blocks), BlockIndex(num_blocks), dict[bytes, int]()
    keys = [(draw.choice([0, 3, 2**64 - 1])).to_bytes(8, "little") + bytes([n, 1] * 4) for n in range(200)]
    for _ in range(6000):
        block, key = draw.randrange(num_blocks), draw.choice(keys)
        if block in expected.values():
            assert not index.add(block, key)
            assert block in index
            del expected[index.key_of(block)]
            index.remove(block)
        elif key in expected:
            assert not index.add(block, key)
        else:
            assert index.add(block, key)
            expected[key] = block
        assert len(index) == len(expected)
        probed = draw.choice(keys)
        assert index.find(probed) == expected.get(probed)
    assert all(index.find(key) == expected.get(key) for key in keys)


def test_a_block_takes_less_than_a_hundred_bytes() -> None:
    num_blocks = 10_000
    pool = BlockPool(num_blocks)
    blocks = pool.take(num_blocks)
    for block in blocks:
        pool.enter(block, random.Random(block).randbytes(16))
    pool.give_back(blocks)
    assert pool.num_cached == num_blocks
    assert sum(map(_num_bytes, vars(pool).values())) < 100 * num_blocks


def _num_bytes(value: object) -> int:
    parts = vars(value).values() if isinstance(value, BlockIndex) else ()
    return sys.getsizeof(value) + sum(map(_num_bytes, parts))
