"""The Performance History Table."""

import math

from telemetry.cost import CostFit
from telemetry.history import History, Interval, Row, decode, encode, field_of, newest


def full_row(candidate: str = "smollm2-135m@late", depth: int = 20, measured_at: int = 1_795_000_000) -> Row:
    return Row(
        candidate=candidate, depth=depth, measured_at=measured_at, num_requests=5, num_tokens=640,
        throughput=211.123456789, cost=CostFit(1.23456789, 0.22222222, 0.11111111, 0.00123456),
        exits={15: 211, depth: 429}, breaches=12, agreement=Interval(0.93123456, 0.91234567, 0.95123456, 20),
        perplexity=12.3456789, bits_per_byte=0.81234567, joules_per_token=1.23456789, swap_ms=1234.56789,
        deepen_ms=567.123456, version="ab12cd34ef56-bfloat16-20",
    )  # fmt: skip


def test_three_candidates_with_everything_known_stay_under_a_kilobyte() -> None:
    rows = [full_row(f"candidate-{number}@late") for number in range(3)]
    assert sum(len(encode(row)) + len(field_of(row.key)) for row in rows) < 1024


def test_measurements_keep_five_digits() -> None:
    row = decode(encode(full_row()))
    assert row is not None
    assert row.throughput == 211.12
    assert row.cost == CostFit(1.2346, 0.22222, 0.11111, 0.0012346)
    assert row.exits == {15: 211, 20: 429}
    assert row.measured_at == 1_795_000_000
    assert row.breach_rate == 12 / 640


def test_what_is_no_number_is_not_known() -> None:
    row = decode(encode(Row(candidate="poet", depth=3, measured_at=1, perplexity=math.inf, throughput=0.0)))
    assert row == Row(candidate="poet", depth=3, measured_at=1, throughput=0.0)
    assert decode(b"[]") is None


def test_an_older_measurement_changes_nothing_and_one_of_the_same_second_does() -> None:
    history = History()
    history.put(Row(candidate="poet", depth=3, measured_at=10, num_requests=1))
    history.put(Row(candidate="poet", depth=3, measured_at=9, num_requests=2))
    assert history.rows()[0].num_requests == 1
    history.put(Row(candidate="poet", depth=3, measured_at=10, num_requests=3))
    assert history.rows()[0].num_requests == 3
    assert history.get("poet", 4) is None


def test_what_redis_has_is_not_written_again_and_what_it_lost_is() -> None:
    history = History()
    history.put(full_row())
    fields = history.unwritten()
    assert list(fields) == ["smollm2-135m@late@20:"]
    history.learn({name.encode(): data for name, data in fields.items()})
    assert history.unwritten() == {}
    history.learn({})
    assert history.unwritten() == fields


def test_of_two_routers_measurements_the_later_one_is_kept_by_both() -> None:
    early, late = full_row(measured_at=1), full_row(measured_at=2)
    for history, own, other in ((History(), early, late), (History(), late, early)):
        history.put(own)
        history.learn({b"smollm2-135m@late@20:": encode(other)})
        assert [row.measured_at for row in history.rows()] == [2]
        assert bool(history.unwritten()) == (own is late)


def test_all_routers_choose_the_same_one_of_the_same_second() -> None:
    row = Row(candidate="poet", depth=3, measured_at=10, num_requests=1)
    other = Row(candidate="poet", depth=3, measured_at=10, num_requests=2)
    assert newest([row, other]) == newest([other, row])
