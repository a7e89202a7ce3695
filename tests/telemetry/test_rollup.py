"""Windows summed up by steps."""

from hypothesis import given
from hypothesis import strategies as st

from telemetry.rollup import MAX_WAITING, Resolution, Rollup, decode_between, field_of, summed
from telemetry.window import Record, Window
from tests.telemetry.windows import merged

MINUTES = Resolution(step_s=60, hash_s=3600, kept_s=86_400)
WINDOWS = st.tuples(st.floats(0, 20_000), st.integers(1, 9), st.sampled_from(["a", "b"]))


def record(at: float, tokens: int = 1, candidate: str = "a", shard: int = 0) -> Record:
    return Record(shard, candidate, 30, Window(start=at, end=at + 1, tokens_by_exit={30: tokens}))


class Kept:
    """What a Redis would hold after each flush."""

    def __init__(self) -> None:
        self.hashes: dict[int, dict[bytes, bytes]] = {}

    def flush(self, router: str, held: Rollup) -> None:
        entries = held.unwritten()
        for entry in entries:
            self.hashes.setdefault(entry.start // 3600, {})[field_of(entry.start, router).encode()] = (
                entry.data
            )
        held.written(entries)

    def tokens(self, since: float = 0, until: float = 1e9) -> int:
        fields = [self.hashes.get(hour, {}) for hour in MINUTES.hashes(since, until) if hour in self.hashes]
        return merged(one.window for one in decode_between(fields, since, until)).tokens


@given(st.lists(st.tuples(WINDOWS, st.booleans(), st.sampled_from(["one", "two"])), max_size=40))
def test_no_token_is_lost_or_counted_twice_however_often_it_is_flushed(made) -> None:
    kept, held = Kept(), {"one": Rollup(MINUTES), "two": Rollup(MINUTES)}
    for (at, tokens, candidate), flushes, router in sorted(made):  # a clock that goes on
        held[router].add(summed([record(at, tokens, candidate)], 5))
        if flushes:
            kept.flush(router, held[router])
    for router, own in held.items():
        kept.flush(router, own)
        assert own.unwritten() == []
    assert kept.tokens() == sum(tokens for (_, tokens, _), _, _ in made)
    inside = [tokens for (at, tokens, _), _, _ in made if 600 <= at < 7200]
    assert kept.tokens(600, 7200) == sum(inside)


def test_what_is_added_while_it_is_written_is_written_next() -> None:
    held = Rollup(MINUTES)
    held.add([record(0)])
    entries = held.unwritten()
    held.add([record(1)])
    held.written(entries)
    [entry] = held.unwritten()
    assert decode_between([{b"0:one": entry.data}], 0, 60)[0].window.tokens == 2


def test_shards_are_summed_up_and_candidates_are_not() -> None:
    held = Rollup(MINUTES)
    held.add([record(5, 1, "a", 0), record(6, 2, "a", 1), record(7, 4, "b", 0)])
    found = {one.candidate: one.window.tokens for one in held.between(0, 60)}
    assert found == {"a": 3, "b": 4}


def test_memory_is_bounded_with_redis_and_without() -> None:
    held = Rollup(MINUTES)
    for minute in range(2 * MAX_WAITING):
        held.add([record(60 * minute)])
    assert len(held.unwritten()) == MAX_WAITING
    held.written(held.unwritten())
    assert len(held.between(0, 1e9)) <= 4


def test_what_cannot_be_read_is_left_out() -> None:
    assert decode_between([{b"60:one": b"?", b"x": b"", b"120:one": b"\x90"}], 0, 1e9) == []
    assert list(MINUTES.hashes(3599, 3600)) == [0]
    assert list(MINUTES.hashes(0, 3601)) == [0, 1]
