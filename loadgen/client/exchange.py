"""One request and its answer on a connection, independent of the answer's meaning.

Every read is timestamped when the event loop delivers it, and kept as raw bytes. Parsing happens in pauses
(`Backlog`), so that a thousand simultaneous reads are all stamped before any is parsed. Only heads, ends, and
streams that count tokens are parsed at once.
"""

import asyncio
from collections import deque
from time import monotonic

from loadgen.client.records import Outcome
from loadgen.client.wire import AnswerParser, BadAnswer, Head

LAST_CHUNK = b"0\r\n\r\n"
BATCH_READS = 16  # parsing this many at once costs a third of parsing each alone
SLICE_S = 0.0001  # parsing yields to reading after this long

Done = asyncio.Future[tuple[Outcome, str]]


class Backlog:
    """Exchanges with unparsed reads; parses them between reads, in time slices."""

    def __init__(self, loop: asyncio.AbstractEventLoop):
        self.loop = loop
        self._waiting: deque[Exchange] = deque()
        self._is_scheduled = False

    def add(self, exchange: "Exchange") -> None:
        self._waiting.append(exchange)
        if not self._is_scheduled:
            self._is_scheduled = True
            self.loop.call_soon(self._work)

    def _work(self) -> None:
        stop_at = monotonic() + SLICE_S
        while self._waiting and monotonic() < stop_at:
            self._waiting.popleft().digest()
        self._is_scheduled = bool(self._waiting)
        if self._is_scheduled:
            self.loop.call_soon(self._work)


class Exchange:
    """One request and its answer. Subclasses interpret head and body.

    `done` resolves exactly once, with the outcome; the connection is reusable only if `is_clean`.
    """

    def __init__(self, backlog: Backlog):
        self.done: Done = backlog.loop.create_future()
        self.sent_at = 0.0
        self.last_read = 0.0
        self.answer = AnswerParser()
        self.is_lazy = False
        self.num_reads = 0
        self._reads: list[tuple[float, bytes]] = []
        self._backlog = backlog
        self._is_queued = False

    @property
    def is_clean(self) -> bool:
        return self.answer.is_complete and self.head is not None and self.head.keeps_alive

    @property
    def head(self) -> Head | None:
        return self.answer.head

    @property
    def is_unheard(self) -> bool:
        """True if the connection closed before any byte came."""
        return self.num_reads == 0 and self.done.result()[0] in (Outcome.RESET, Outcome.CLOSED)

    @property
    def has_begun(self) -> bool:
        """True once the answer's content has begun."""
        return self.num_reads > 0

    def feed(self, at: float, data: bytes) -> None:
        """Take a read. Called by the connection; no other code runs before the next read."""
        self._reads.append((at, data))
        self.last_read = at
        self.num_reads += 1
        if not self.is_lazy or len(data) < 5 or data[-5:] == LAST_CHUNK:
            self.digest()
        elif len(self._reads) >= BATCH_READS:
            self.catch_up()

    def catch_up(self) -> None:
        """Schedule the parsing of reads."""
        if self._reads and not self._is_queued:
            self._is_queued = True
            self._backlog.add(self)

    def digest(self) -> None:
        """Parse the reads so far."""
        self._is_queued = False
        reads, self._reads = self._reads, []
        if self.done.done():
            return
        try:
            for at, data in reads:
                self._digest_read(at, data)
        except BadAnswer as error:
            self.end(Outcome.GARBAGE, str(error), reads[-1][0])
        if self.answer.is_complete:
            self.on_complete(reads[-1][0])

    def _digest_read(self, at: float, data: bytes) -> None:
        had_head = self.head is not None
        pieces = self.answer.feed(data)
        if self.head is not None and not had_head:
            self.on_head(self.head)
        for piece in pieces:
            self.on_piece(piece, at)

    def lost(self, at: float, error: Exception | None) -> None:
        """Note that the connection closed."""
        self.digest()
        if self.done.done():
            return
        if isinstance(error, ConnectionResetError | BrokenPipeError):
            self.end(Outcome.RESET, "connection reset", at)
        elif self.head is not None and not self.answer.is_sized:
            self.on_complete(at)
        elif self.has_partial():
            self.end(Outcome.HALF_EVENT, "closed in the middle of an event", at)
        else:
            self.end(
                Outcome.CLOSED, "closed before the end" if self.num_reads else "closed without an answer", at
            )

    def has_partial(self) -> bool:
        return self.answer.is_in_chunk

    def end(self, outcome: Outcome, detail: str, at: float) -> None:
        if not self.done.done():
            self.on_end(at)
            self.done.set_result((outcome, detail))

    def on_begin(self, is_retry: bool) -> None: ...

    def on_head(self, head: Head) -> None: ...

    def on_piece(self, piece: bytes, at: float) -> None: ...

    def on_complete(self, at: float) -> None: ...

    def on_end(self, at: float) -> None: ...
