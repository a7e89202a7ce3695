"""What the router believes of a shard's prefix cache."""

import random
import sys

from router.scheduling.prefix_index import PrefixIndex, block_keys
from router.scheduling.request import Request
from tests.router.fakes import make_request, make_spec


def test_keys_are_of_full_blocks_and_all_before_them() -> None:
    keys = block_keys("", list(range(70)), 16)
    assert len(keys) == 4
    assert block_keys("", [*range(40), 7, *range(41, 70)], 16)[:2] == keys[:2]
    assert not set(block_keys("", [*range(40), 7, *range(41, 70)], 16)[2:]) & set(keys)
    assert not set(block_keys("salt", list(range(70)), 16)) & set(keys)


def test_what_was_used_last_is_kept_beginnings_longest() -> None:
    index = PrefixIndex(5)
    first, second = block_keys("", list(range(64)), 16), block_keys("", list(range(100, 164)), 16)
    index.add(first)
    assert index.num_found(first) == 4
    index.add(second)
    assert index.num_found(second) == 4
    assert index.num_found(first) == 1
    index.add(first[:1])
    index.add(block_keys("", list(range(300, 316)), 16))
    assert (index.num_found(first), index.num_found(second)) == (1, 3)
    index.clear()
    assert index.num_found(first) == 0


def test_a_requests_keys_follow_its_tokens() -> None:
    request: Request = make_request(1, spec=make_spec(num_prompt_tokens=40))
    keys = request.block_keys(16)
    assert len(keys) == 2
    assert request.block_keys(16) is keys
    assert len(request.block_keys(8)) == 5


def test_another_model_keeps_the_latest_or_nothing() -> None:
    index, keys = PrefixIndex(10), block_keys("", list(range(128)), 16)
    index.add(keys)
    index.change(6, 3)
    assert index.num_found(keys) == 3
    index.add(keys)
    assert index.num_found(keys) == 6
    index.change(6, 0)
    assert index.num_found(keys) == 0


def test_it_keeps_what_an_ordered_dict_keeps() -> None:
    """Random sequences that share beginnings, of few keys, in little room."""
    draw, index, expected = random.Random(3), PrefixIndex(23), dict[int, None]()
    for _ in range(3000):
        keys = [draw.choice([64, 1]) * which for which in range(draw.randrange(1, 12))]
        keys = [key + draw.choice([0, 0, 0, 1000]) for key in keys]
        index.add(keys)
        for key in reversed(keys):
            expected.pop(key, None)
            expected[key] = None
            if len(expected) > 23:
                del expected[next(iter(expected))]
        assert len(index) == len(expected)
        probed = draw.randrange(2000)
        for key in (probed, *keys):
            assert index.num_found([key]) == (key in expected)


def test_a_block_takes_less_than_a_hundred_bytes() -> None:
    for num_blocks in (1000, 44_000, 65_536, 65_537):
        index = PrefixIndex(num_blocks)
        index.add(block_keys("", list(range(4 * num_blocks)), 4))
        assert len(index) == num_blocks
        assert sum(map(sys.getsizeof, vars(index).values())) < 40 * num_blocks
