"""A queue of entries for Redis, bounded in bytes: the oldest are dropped and counted. Pure."""

from collections import deque

import msgspec


class Entry(msgspec.Struct, frozen=True):
    """One entry of a stream. Its own id makes writing idempotent."""

    data: bytes
    id: str = "*"
    num_items: int = 1  # items in it
    tick: bytes = b""  # of `data`; see `telemetry/tick.py`

    @property
    def num_bytes(self) -> int:
        return len(self.data) + len(self.tick)


class Outbox:
    """Entries in order."""

    def __init__(self, max_bytes: int):
        self.num_dropped = 0  # items since the start
        self._max_bytes = max_bytes
        self._num_bytes = 0
        self._entries: deque[Entry] = deque()

    def __len__(self) -> int:
        return len(self._entries)

    def put(self, entry: Entry) -> None:
        self._entries.append(entry)
        self._num_bytes += entry.num_bytes
        while self._num_bytes > self._max_bytes:
            self.num_dropped += self._pop().num_items

    def peek(self) -> list[Entry]:
        """All entries in order; they stay until `written`."""
        return list(self._entries)

    def written(self, entries: list[Entry]) -> None:
        """Remove entries of the last `peek` that were written."""
        done = {id(entry) for entry in entries}
        while self._entries and id(self._entries[0]) in done:
            self._pop()

    def _pop(self) -> Entry:
        entry = self._entries.popleft()
        self._num_bytes -= entry.num_bytes
        return entry
