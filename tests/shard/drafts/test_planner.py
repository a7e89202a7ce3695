"""As many drafts are verified as make most tokens per millisecond, none where none pays."""

from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shard.drafts.planner import choose, choose_length, gains

CHANCES = st.lists(st.lists(st.floats(0.05, 0.98), max_size=3), min_size=1, max_size=3)


@given(CHANCES, st.floats(0.0, 2.0), st.floats(0.0, 1.0))
def test_no_other_choice_has_a_better_rate(chances: list[list[float]], each: float, bend: float) -> None:
    def cost(count: int) -> float:
        return 10 + each * count + bend * max(0, count - 3)

    def rate(lengths: tuple[int, ...]) -> float:
        tokens = sum(sum(gains(own[:n])) for own, n in zip(chances, lengths, strict=True))
        return (len(chances) + tokens) / cost(sum(lengths))

    chosen = tuple(choose(chances, len(chances), cost))
    best = max(rate(lengths) for lengths in product(*[range(len(own) + 1) for own in chances]))
    assert rate(chosen) == pytest.approx(best)


def test_dear_rows_are_not_bought_and_free_ones_are_all_taken() -> None:
    assert choose([[0.9, 0.9], [0.5]], 2, lambda count: 10 * (1 + count)) == [0, 0]
    assert choose([[0.9, 0.9], [0.5]], 2, lambda count: 10) == [2, 1]
    assert choose([[0.9, 0.9], [0.1]], 2, lambda count: 10 + count) == [2, 0]


def test_a_drafter_is_asked_for_what_its_time_is_worth() -> None:
    def cost(count: int) -> float:
        return 10 + 0.1 * count

    assert choose_length([[0.8] * 8], 1, cost, guess_ms=0.1, max_length=8) == 8
    assert 1 <= choose_length([[0.8] * 8], 1, cost, guess_ms=2.0, max_length=8) <= 5
    assert choose_length([[0.8] * 8], 1, cost, guess_ms=20.0, max_length=8) == 0
