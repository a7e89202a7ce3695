"""Windows as time series."""

from hypothesis import given
from hypothesis import strategies as st

from telemetry.series import keep_largest, series_by
from telemetry.window import Record, Window
from tests.telemetry.windows import merged


def record(at: float, tokens: int = 1, candidate: str = "poet", shard: int = 0) -> Record:
    return Record(shard, candidate, 30, Window(start=at, end=at + 1, tokens_by_exit={30: tokens}))


def by_name(record: Record) -> str:
    return record.candidate


@given(
    st.lists(
        st.tuples(st.floats(0, 1000), st.integers(0, 50), st.sampled_from(["a", "b", "c"])), max_size=40
    ),
    st.integers(1, 100),
    st.integers(1, 4),
)
def test_no_token_is_lost_or_counted_twice(
    made: list[tuple[float, int, str]], step_s: int, most: int
) -> None:
    records = [record(*one) for one in made]
    series = series_by(records, step_s, by_name)
    kept, others = keep_largest(series, most)
    assert len(kept) == min(most, len(series))
    windows = [window for steps in [*kept.values(), others] for window in steps.values()]
    assert merged(windows).tokens == sum(tokens for _, tokens, _ in made)
    for name, steps in series.items():
        for start, window in steps.items():
            inside = [one for one in made if one[2] == name and start <= one[0] < start + step_s]
            assert start % step_s == 0
            assert window.tokens == sum(tokens for _, tokens, _ in inside)


def test_the_largest_series_stay() -> None:
    records = [record(0, 5, "a"), record(0, 1, "b"), record(3, 2, "c"), record(3, 9, "d")]
    kept, others = keep_largest(series_by(records, 1, by_name), 2)
    assert list(kept) == ["a", "d"]
    assert {start: window.tokens for start, window in others.items()} == {0: 1, 3: 2}
