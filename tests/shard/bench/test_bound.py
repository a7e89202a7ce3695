"""The bound beside a speed-up: what layers, heads and fill allow, put together as the mode would."""

import pytest

from shard.bench.bound import Curve, Stream, Times, bound_of
from shard.messages import Fill, Mode

SHARES = [0.74, 0.12, 0.07, 0.07]


def times(row_ms: float = 0.0, fill_ms: float = 0.0) -> Times:
    """Four segments of 6 ms and a head of 2 ms, and what each row adds to them."""
    segment = Curve([(1, 6 + row_ms), (101, 6 + 101 * row_ms)])
    return Times([segment] * 4, Curve([(1, 2.0)]), [fill_ms] * 4)


def test_curves_are_straight_between_points_and_go_on_as_steep():
    curve = Curve([(1, 2.0), (11, 4.0), (21, 10.0)])
    assert [curve(n) for n in (0.5, 1, 6, 11, 16, 31)] == pytest.approx([2.0, 2.0, 3.0, 4.0, 7.0, 16.0])


def test_alone_a_row_pays_for_the_layers_it_needs():
    expected = 26 / (8 + 6 * (0.26 + 0.14 + 0.07))
    for mode in (Mode.PER_ROW, Mode.SYNCHRONIZED):
        assert bound_of(mode, times(), Stream(SHARES, 1, Fill.PROJECT)) == pytest.approx(expected)


def test_a_batch_that_leaves_together_gains_little():
    together = bound_of(Mode.SYNCHRONIZED, times(), Stream(SHARES, 32, Fill.PROJECT))
    assert together is not None
    assert 1 <= together < 1.05


def test_where_only_rows_cost_recomputing_saves_nothing():
    """Each token goes through all layers in the end."""
    costs = Times([Curve([(0, 0.0), (100, 100.0)])] * 4, Curve([(1, 0.0)]), [0.0] * 4)
    assert bound_of(Mode.PER_ROW, costs, Stream(SHARES, 32, Fill.RECOMPUTE)) == pytest.approx(1.0)
    projected = bound_of(Mode.PER_ROW, costs, Stream(SHARES, 32, Fill.PROJECT))
    assert projected == pytest.approx(4 / (1 + 0.26 + 0.14 + 0.07))


def test_filling_costs_and_gathering_gains():
    free = bound_of(Mode.PER_ROW, times(), Stream(SHARES, 32, Fill.PROJECT))
    filled = bound_of(Mode.PER_ROW, times(fill_ms=0.05), Stream(SHARES, 32, Fill.PROJECT))
    assert free is not None and filled is not None
    assert free > filled > 1
    at_once = 26 / (8 + 3 * 6)  # every step goes deep
    assert free > 1.2 * at_once


def test_what_is_not_modelled_has_no_bound():
    assert bound_of(Mode.SPECULATIVE, times(), Stream(SHARES, 1, Fill.RECOMPUTE)) is None
    assert bound_of(Mode.CAPPED, times(), Stream(SHARES, 8, Fill.RECOMPUTE)) == pytest.approx(26 / 8)
