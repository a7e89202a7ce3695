"""What waits to be written to Redis: so many bytes at most, the oldest dropped and counted. Pure."""

from collections import deque

import msgspec


class Entry(msgspec.Struct, frozen=True):
    """One entry of a stream. With an id of its own, writing it twice is writing it once."""

    data: bytes
    id: str = "*"
    num_items: int = 1  # that are lost with it


class Outbox:
    """Entries in order."""

    def __init__(self, max_bytes: int):
        self.num_dropped = 0  # items, ever
        self._max_bytes = max_bytes
        self._num_bytes = 0
        self._entries: deque[Entry] = deque()

    def __len__(self) -> int:
        return len(self._entries)

    def put(self, entry: Entry) -> None:
        self._entries.append(entry)
        self._num_bytes += len(entry.data)
        while self._num_bytes > self._max_bytes:
            self.num_dropped += self._pop().num_items

    def peek(self) -> list[Entry]:
        """All, in order; they stay until `written` says otherwise."""
        return list(self._entries)

    def written(self, entries: list[Entry]) -> None:
        """Forget entries of the last `peek`; what was dropped meanwhile is gone already."""
        done = {id(entry) for entry in entries}
        while self._entries and id(self._entries[0]) in done:
            self._pop()

    def _pop(self) -> Entry:
        entry = self._entries.popleft()
        self._num_bytes -= len(entry.data)
        return entry
