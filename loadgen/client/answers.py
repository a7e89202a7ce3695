"""The two kinds of exchanges: whole answers, and streams of tokens that fill a record."""

from time import monotonic

import msgspec

from loadgen.client.exchange import Backlog, Exchange
from loadgen.client.readers import GarbageEvent, Reader
from loadgen.client.records import Outcome, Record
from loadgen.client.wire import EventSplitter, Head


class FetchExchange(Exchange):
    """An exchange with a whole answer: JSON or metrics."""

    def __init__(self, backlog: Backlog):
        super().__init__(backlog)
        self.pieces: list[bytes] = []

    def on_piece(self, piece: bytes, at: float) -> None:
        self.pieces.append(piece)

    def on_complete(self, at: float) -> None:
        self.end(Outcome.OK, "", at)


class Cancel(msgspec.Struct, frozen=True):
    """When to cancel a request on purpose: at the first of these."""

    after_tokens: int | None = None
    after_s: float | None = None


NEVER = Cancel()


class StreamExchange(Exchange):
    """An exchange that reads a stream of tokens into a record. Too many events end it as endless."""

    def __init__(self, backlog: Backlog, record: Record, reader: Reader, cancel: Cancel):
        super().__init__(backlog)
        self.record = record
        self._reader = reader
        self._cancel = cancel
        self._splitter = EventSplitter()
        self._refusal = b""
        self._max_events = 2 * record.max_tokens + 64

    @property
    def has_begun(self) -> bool:
        return bool(self.record.token_times or self._reads)

    def on_begin(self, is_retry: bool) -> None:
        self.record.sent = self.sent_at
        self.record.was_reconnected = is_retry
        if self._cancel.after_s is not None:
            self._timer = self._backlog.loop.call_later(self._cancel.after_s, self._cancel_now)

    def _cancel_now(self) -> None:
        self.digest()
        self.end(Outcome.CANCELLED, "", monotonic())

    def on_head(self, head: Head) -> None:
        record, headers = self.record, head.headers
        record.status = head.status
        record.model = headers.get("x-helios-model", "")
        record.version = headers.get("x-helios-version", "")
        record.queue_ms = _number(headers.get("x-queue-time"))
        record.retry_after_s = _number(headers.get("retry-after"))
        self.is_lazy = head.status == 200 and self.answer.is_chunked and self._cancel.after_tokens is None

    def on_piece(self, piece: bytes, at: float) -> None:
        if self.record.status != 200:
            self._refusal += piece
            return
        for data in self._splitter.feed(piece):
            try:
                self._reader.take(data, at)
            except GarbageEvent as error:
                self.end(Outcome.GARBAGE, f"{error}: {data[:80]!r}", at)
                return
            if self.record.outcome is Outcome.ERROR_EVENT:
                self.end(Outcome.ERROR_EVENT, self.record.detail, at)
                return
        self._check_bounds(at)

    def _check_bounds(self, at: float) -> None:
        num_events = len(self.record.token_times)
        limit = self._cancel.after_tokens
        if limit is not None and num_events >= limit and not self._reader.is_over:
            self.end(Outcome.CANCELLED, "", at)
        elif num_events > self._max_events:
            self.end(Outcome.ENDLESS, f"{num_events} events for {self.record.max_tokens} tokens asked", at)

    def on_complete(self, at: float) -> None:
        status = self.record.status
        if status == 200:
            self._end_of_stream(at)
        else:
            detail = _message_of(self._refusal)
            self.end(Outcome.REFUSED if status == 429 else Outcome.HTTP_ERROR, f"{status} {detail}", at)

    def _end_of_stream(self, at: float) -> None:
        if self._reader.is_over:
            self.end(Outcome.OK, "", at)
        elif self._splitter.has_partial_event:
            self.end(Outcome.HALF_EVENT, "the stream ended in the middle of an event", at)
        else:
            self.end(Outcome.UNFINISHED, "the stream ended without its last event", at)

    def has_partial(self) -> bool:
        return self._splitter.has_partial_event or super().has_partial()

    def on_end(self, at: float) -> None:
        self.record.ended = at
        self.record.num_reads = self.num_reads


def _number(text: str | None) -> float | None:
    try:
        return None if text is None else float(text)
    except ValueError:
        return None


def _message_of(body: bytes) -> str:
    """The message in an error body of either dialect, else the body's beginning."""
    try:
        error = msgspec.json.decode(body)["error"]
        return str(error["message"] if isinstance(error, dict) else error)[:300]
    except (msgspec.DecodeError, KeyError, TypeError):
        return body[:200].decode("utf-8", "replace")
