"""What waits for Redis is bounded."""

from hypothesis import given
from hypothesis import strategies as st

from telemetry.outbox import Entry, Outbox


@given(st.lists(st.tuples(st.integers(0, 40), st.integers(1, 3))))
def test_the_latest_are_kept_within_the_bound_and_the_rest_is_counted(sizes: list[tuple[int, int]]) -> None:
    outbox, entries = Outbox(100), []
    for size, num_items in sizes:
        entries.append(Entry(bytes(size), num_items=num_items))
        outbox.put(entries[-1])
    kept = outbox.peek()
    assert kept == entries[len(entries) - len(kept) :]
    assert sum(len(entry.data) for entry in kept) <= 100
    assert outbox.num_dropped == sum(entry.num_items for entry in entries[: len(entries) - len(kept)])


def test_what_was_put_while_the_rest_was_written_stays() -> None:
    outbox = Outbox(100)
    outbox.put(Entry(b"first"))
    peeked = outbox.peek()
    outbox.put(Entry(b"first"))
    outbox.written(peeked)
    assert len(outbox) == 1
    outbox.written(outbox.peek())
    assert len(outbox) == 0


def test_what_was_dropped_while_it_was_written_is_not_taken_for_another() -> None:
    outbox = Outbox(10)
    outbox.put(Entry(b"12345"))
    peeked = outbox.peek()
    outbox.put(Entry(b"1234567890"))
    outbox.written(peeked)
    assert [entry.data for entry in outbox.peek()] == [b"1234567890"]
    assert outbox.num_dropped == 1
