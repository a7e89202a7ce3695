import pytest

from loadgen.client.ops import Decision
from loadgen.client.records import Segment
from loadgen.results.swaps import longest_gaps, swaps_of, versions_of
from tests.loadgen.making import record, run_of

SWAP = Decision(
    "d1", 1010.0, "loop", "swap", "small@10", "cheaper", "committed", {"prepare": 400.0, "commit": 100.0}
)


def test_the_gap_at_a_swap_is_each_stream_s_longest_pause_there() -> None:
    steady = [9.0 + 0.1 * step for step in range(30)]
    stopped = [9.0, 9.9, 10.7, 11.0]
    before = [1.0, 2.0, 3.0]
    run = run_of([record(8.0, steady), record(8.0, stopped), record(0.5, before)], decisions=[SWAP])
    (swap,) = swaps_of(run)
    assert (swap.at_s, swap.until_s, swap.num_streams) == (10.0, 10.5, 2)
    assert swap.longest_gap_ms == pytest.approx(800)
    assert swap.median_gap_ms == pytest.approx(450)
    assert (swap.to, swap.outcome) == ("small@10", "committed")


def test_a_pause_counts_if_it_overlaps() -> None:
    assert longest_gaps([record(0.0, [1.0, 5.0, 5.1])], 2.0, 3.0) == [pytest.approx(4000)]
    assert longest_gaps([record(0.0, [1.0, 1.5])], 2.0, 3.0) == []


def test_without_a_diary_swaps_are_seen_in_the_answers() -> None:
    records = [record(float(at), [at + 0.1, at + 0.6], version="aa" if at < 3 else "bb") for at in range(6)]
    (swap,) = swaps_of(run_of(records))
    assert swap.at_s == 3
    assert "bb" in swap.to


def test_a_server_that_tells_no_version_has_no_swaps() -> None:
    assert swaps_of(run_of([record(0.0, [0.1]), record(1.0, [1.1])])) == []


def test_versions_are_counted_with_their_depth() -> None:
    segments = [Segment("m", "aa", 10, 0)]
    records = [
        record(0.0, [0.1], segments=segments, model="m", version="aa"),
        record(1.0, [1.1], model="m", version="aa"),
        record(2.0, [2.1], segments=[*segments, Segment("m", "bb", 30, 5)]),
    ]
    first, second = versions_of(run_of(records))
    assert (first.version, first.depth, first.num_requests, first.first_s, first.last_s) == (
        "aa",
        10,
        3,
        0,
        2,
    )
    assert (second.version, second.depth, second.num_requests) == ("bb", 30, 1)
