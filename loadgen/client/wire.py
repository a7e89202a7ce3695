"""The bytes of an HTTP/1.1 answer, incrementally: head, body framing, server-sent events.

Pure. Knows no socket, no clock, and no meaning of events.
"""

import httptools
import msgspec

MAX_HEAD_BYTES = 65536


class BadAnswer(Exception):
    """The answer is not valid HTTP/1.1."""


class Head(msgspec.Struct, frozen=True):
    """Status line and header fields; names in lower case, the last of a repeated field wins."""

    status: int
    headers: dict[str, str]

    @property
    def keeps_alive(self) -> bool:
        return self.headers.get("connection", "").lower() != "close"


class AnswerParser:
    """Incremental parser of one HTTP/1.1 answer, by httptools. Interim heads (1xx) are skipped."""

    def __init__(self) -> None:
        self.head: Head | None = None  # once complete
        self.is_chunked = False
        self.is_sized = False  # else it ends with its connection
        self.is_complete = False
        self.is_in_chunk = False
        self._parser = httptools.HttpResponseParser(self)
        self._fields: dict[str, str] = {}
        self._pieces: list[bytes] = []
        self._num_head_bytes = 0

    def feed(self, data: bytes) -> list[bytes]:
        """The parts of the body in `data`. Raises `BadAnswer`."""
        if self.head is None:
            self._num_head_bytes += len(data)
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            cause = error.__context__ if isinstance(error.__context__, BadAnswer) else error
            where = "body" if self.head is not None else "head"
            raise BadAnswer(f"not an HTTP/1.1 {where} ({cause}): {data[:80]!r}") from None
        if self.head is None and self._num_head_bytes > MAX_HEAD_BYTES:
            raise BadAnswer(f"a head of more than {MAX_HEAD_BYTES} bytes")
        pieces, self._pieces = self._pieces, []
        return pieces

    def on_message_begin(self) -> None:
        if self.is_complete:
            raise BadAnswer("bytes behind the end of the body")

    def on_header(self, name: bytes, value: bytes) -> None:
        self._fields[name.decode("latin-1").lower()] = value.decode("latin-1")

    def on_headers_complete(self) -> None:
        status = self._parser.get_status_code()
        if status < 200:
            self._fields = {}
            return
        self.head = Head(status, self._fields)
        self.is_chunked = "chunked" in self._fields.get("transfer-encoding", "").lower()
        self.is_sized = self.is_chunked or "content-length" in self._fields or status in (204, 304)

    def on_chunk_header(self) -> None:
        self.is_in_chunk = True

    def on_chunk_complete(self) -> None:
        self.is_in_chunk = False

    def on_body(self, data: bytes) -> None:
        self._pieces.append(data)

    def on_message_complete(self) -> None:
        self.is_complete = self.head is not None


class EventSplitter:
    """Splits a byte stream into server-sent events, and yields the `data` of each."""

    def __init__(self) -> None:
        self._buffer = b""

    @property
    def has_partial_event(self) -> bool:
        return bool(self._buffer.strip())

    def feed(self, data: bytes) -> list[bytes]:
        """The data of every event that `data` completes."""
        # Fast path for the common case: one whole event of one line.
        if not self._buffer and data[:5] == b"data:" and data[-2:] == b"\n\n" and data.count(b"\n") == 2:
            return [data[5:-2]]
        self._buffer = (self._buffer + data).replace(b"\r\n", b"\n")
        *blocks, self._buffer = self._buffer.split(b"\n\n")
        return [data for block in blocks if (data := _data_of(block))]


def _data_of(block: bytes) -> bytes:
    lines = (line for line in block.split(b"\n") if line.startswith(b"data:"))
    return b"\n".join(line[5:] for line in lines)
