"""Sums over windows, for tests that compare them."""

from collections.abc import Iterable

from telemetry.window import Record, Window


def merged(windows: Iterable[Window]) -> Window:
    """One window over all."""
    whole = Window()
    for window in windows:
        whole.merge(window)
    return whole


def by_candidate(records: Iterable[Record]) -> dict[tuple[str, int], Window]:
    """One window for each (candidate, depth), over all shards."""
    found: dict[tuple[str, int], Window] = {}
    for record in records:
        found.setdefault(record.key, Window()).merge(record.window)
    return found
