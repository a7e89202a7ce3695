"""The bytes of an HTTP/1.1 answer, incrementally: head, body framing, server-sent events.

Pure: bytes in, pieces out. Knows no socket, no clock, and nothing of what the events mean.
"""

from typing import Protocol

import msgspec


class BadAnswer(Exception):
    """What came is not HTTP/1.1 as promised by its own head."""


class Head(msgspec.Struct, frozen=True):
    """Status line and header fields; names in lower case, the last of a repeated field wins."""

    status: int
    headers: dict[str, str]

    @property
    def keeps_alive(self) -> bool:
        return self.headers.get("connection", "").lower() != "close"


def parse_head(raw: bytes) -> Head:
    """Read a head without its blank line. Raises `BadAnswer`."""
    status_line, *fields = raw.decode("latin-1").split("\r\n")
    protocol, _, rest = status_line.partition(" ")
    if not protocol.startswith("HTTP/1.") or not rest[:3].isdigit():
        raise BadAnswer(f"not an HTTP/1.1 status line: {status_line[:80]!r}")
    pairs = (field.partition(":") for field in fields)
    return Head(int(rest[:3]), {name.strip().lower(): value.strip() for name, _, value in pairs})


class Body(Protocol):
    """How the body of one answer is cut out of the bytes that follow its head."""

    is_complete: bool

    def feed(self, data: bytes) -> list[bytes]: ...


class SizedBody:
    """A body of `Content-Length` bytes."""

    def __init__(self, length: int):
        self._left = length
        self.is_complete = length == 0

    def feed(self, data: bytes) -> list[bytes]:
        self._left -= len(data)
        if self._left < 0:
            raise BadAnswer("more bytes than Content-Length")
        self.is_complete = self._left == 0
        return [data]


class UnsizedBody:
    """A body that ends with its connection."""

    is_complete = False

    def feed(self, data: bytes) -> list[bytes]:
        return [data]


class ChunkedBody:
    """`Transfer-Encoding: chunked`. Trailers are skipped."""

    def __init__(self) -> None:
        self._buffer = b""
        self.is_complete = False

    @property
    def is_between_chunks(self) -> bool:
        return not self._buffer

    def feed(self, data: bytes) -> list[bytes]:
        buffer = self._buffer + data if self._buffer else data
        pieces: list[bytes] = []
        position = 0
        while not self.is_complete:
            line_end = buffer.find(b"\r\n", position)
            if line_end < 0:
                break
            size = _chunk_size(buffer[position:line_end])
            end = line_end + 2 + size
            if size == 0:
                self.is_complete = buffer.find(b"\r\n\r\n", line_end) >= 0
                break
            if len(buffer) < end + 2:
                break
            pieces.append(buffer[line_end + 2 : end])
            position = end + 2
        self._buffer = b"" if self.is_complete else buffer[position:]
        return pieces


def _chunk_size(line: bytes) -> int:
    try:
        size = int(line.split(b";", 1)[0], 16)
    except ValueError:
        size = -1
    if size < 0:
        raise BadAnswer(f"not a chunk size: {line[:40]!r}")
    return size


def body_of(head: Head) -> Body:
    """The framing that a head announces. Raises `BadAnswer`."""
    if head.headers.get("transfer-encoding", "").lower() == "chunked":
        return ChunkedBody()
    length = head.headers.get("content-length")
    if length is None:
        return SizedBody(0) if head.status in (204, 304) else UnsizedBody()
    if not length.isdigit():
        raise BadAnswer(f"not a length: {length[:40]!r}")
    return SizedBody(int(length))


class EventSplitter:
    """Cuts a byte stream into server-sent events and gives the `data` of each."""

    def __init__(self) -> None:
        self._buffer = b""

    @property
    def has_partial_event(self) -> bool:
        return bool(self._buffer.strip())

    def feed(self, data: bytes) -> list[bytes]:
        """The data of every event that `data` completes."""
        # The common case by far, one whole event of one line, must cost next to nothing.
        if not self._buffer and data[:5] == b"data:" and data[-2:] == b"\n\n" and data.count(b"\n") == 2:
            return [data[5:-2]]
        self._buffer = (self._buffer + data).replace(b"\r\n", b"\n")
        *blocks, self._buffer = self._buffer.split(b"\n\n")
        return [data for block in blocks if (data := _data_of(block))]


def _data_of(block: bytes) -> bytes:
    lines = (line for line in block.split(b"\n") if line.startswith(b"data:"))
    return b"\n".join(line[5:] for line in lines)
