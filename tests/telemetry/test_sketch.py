"""Quantiles from counts in logarithmic buckets."""

import math

from hypothesis import given
from hypothesis import strategies as st

from telemetry.sketch import LEAST_MS, MOST_MS, RELATIVE_ERROR, Sketch

times = st.lists(st.floats(LEAST_MS, MOST_MS), min_size=1, max_size=200)
shares = st.floats(0, 1)


def sketch_of(values: list[float]) -> Sketch:
    sketch = Sketch()
    for value in values:
        sketch.add(value)
    return sketch


@given(times, shares)
def test_a_quantile_is_within_two_per_cent_of_a_value_of_that_rank(values: list[float], share: float) -> None:
    exact = sorted(values)[math.floor(share * (len(values) - 1))]
    found = sketch_of(values).quantile(share)
    assert found is not None
    assert abs(found - exact) <= RELATIVE_ERROR * exact * (1 + 1e-9)


@given(times, times)
def test_two_merged_are_one_of_all(values: list[float], others: list[float]) -> None:
    merged = sketch_of(values)
    merged.merge(sketch_of(others))
    assert merged == sketch_of(values + others)
    assert merged.num == len(values) + len(others)


@given(st.lists(st.floats(allow_nan=False), max_size=50))
def test_whatever_is_added_buckets_are_few(values: list[float]) -> None:
    sketch = sketch_of([*values, 0.0, -1.0, 1e300])
    assert all(-115 <= bucket <= 405 for bucket in sketch.counts)


def test_nothing_has_no_quantile() -> None:
    assert Sketch().quantile(0.5) is None


def test_counts_weigh() -> None:
    sketch = Sketch()
    sketch.add(10.0, 9)
    sketch.add(1000.0)
    median, longest = sketch.quantile(0.5), sketch.quantile(1.0)
    assert median is not None
    assert longest is not None
    assert round(median) == 10
    assert abs(longest - 1000) <= 20
