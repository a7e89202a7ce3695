"""Decisions, and what came of them."""

import pytest

from telemetry.audit import AuditLog, Decision, Outcome, decode, encode, new_id, settled, time_of


def decision(number: int, **more: object) -> Decision:
    return Decision(id=f"{number:013d}-abc", at=number / 1000, kind="swap", **more)


def test_a_decision_survives_its_way_through_redis() -> None:
    made = decision(
        1, by="ada", seen={"breaches": 51}, considered=[{"candidate": "poet", "depth": 20}], why="too many",
        chosen={"depth": 30}, cost={"deepen_ms": 12.5}, phases_ms={"read": 3.0}, outcome=Outcome.COMMITTED,
    )  # fmt: skip
    assert decode(encode(made)) == made
    assert decode(b"{}") is None


def test_ids_are_unlike_and_sort_by_time() -> None:
    ids = [new_id(at) for at in (1.0, 999.999, 1_800_000_000.0, 1_800_000_000.001)]
    assert ids == sorted(ids)
    assert new_id(5.0) != new_id(5.0)
    assert time_of(new_id(17.25)) == 17.25
    assert time_of("latest") is None


def test_an_update_is_another_entry_and_the_last_one_counts() -> None:
    log = AuditLog()
    log.append(decision(1))
    log.append(decision(2))
    log.update(decision(1).id, outcome=Outcome.REFUSED, error="no room")
    entries = log.unwritten()
    assert [entry.outcome for entry in entries] == [None, None, Outcome.REFUSED]
    assert [entry.error for entry in settled(entries)] == [None, "no room"]
    assert log.latest() == settled(entries)
    with pytest.raises(KeyError):
        log.update("0-unknown", outcome=Outcome.REFUSED)


def test_what_was_written_is_forgotten_unless_redis_forgot_it() -> None:
    log = AuditLog()
    log.append(decision(1))
    written = log.unwritten()
    log.update(decision(1).id, why="because")  # while it was written
    log.written(written)
    assert [entry.why for entry in log.unwritten()] == ["because"]
    log.written(log.unwritten())
    assert log.unwritten() == []
    log.write_again()
    assert [entry.why for entry in log.unwritten()] == ["because"]


def test_memory_is_bounded() -> None:
    log = AuditLog(max_kept=10)
    for number in range(100):
        log.append(decision(number, outcome=Outcome.COMMITTED))
    assert [entry.at for entry in log.latest()] == [number / 1000 for number in range(99, 89, -1)]
    assert log.find(decision(5).id) is None
    assert len(log.unwritten()) == 40
    assert log.num_dropped == 60
    log.write_again()
    assert {entry.id for entry in log.unwritten()} == {decision(number).id for number in range(60, 100)}


def test_what_came_of_a_decision_can_be_said_however_many_were_taken_meanwhile() -> None:
    log = AuditLog(max_kept=10)
    log.append(decision(0))
    for number in range(1, 600):
        log.append(decision(number, outcome=Outcome.REFUSED))
    assert log.update(decision(0).id, outcome=Outcome.COMMITTED).outcome is Outcome.COMMITTED
    log.append(decision(600, outcome=Outcome.REFUSED))
    assert log.find(decision(0).id) is None
    for number in range(700, 1000):
        log.append(decision(number))
    assert len(log.latest()) == 20
