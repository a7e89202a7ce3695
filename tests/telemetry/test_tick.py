"""A tick has its records' sums, and the work of each shard."""

from telemetry import tick
from telemetry.rollup import summed
from telemetry.tick import ShardWork
from telemetry.window import Record, Window


def record(shard: int, depth: int, tokens: int) -> Record:
    window = Window(start=10.0, end=11.0, tokens_by_exit={depth: tokens}, joules=2.0, step_ms=500.0)
    return Record(shard, "chat", depth, window)


def test_a_shard_that_changed_its_depth_in_a_flush_has_the_work_of_both() -> None:
    records = [record(0, 30, 10), record(0, 20, 5), record(1, 30, 1)]
    found = tick.decode(tick.encode(records, summed(records, 5)))
    assert found is not None
    assert found.shards == {0: ShardWork(15, 4.0, 1000.0), 1: ShardWork(1, 2.0, 500.0)}
    assert {(one.depth, one.window.tokens) for one in found.models} == {(30, 11), (20, 5)}


def test_what_another_version_wrote_is_none() -> None:
    for data in (b"", b"\xc1 of old", b"\x90"):
        assert tick.decode(data) is None
