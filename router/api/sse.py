"""Server-sent events of one or several requests.

A token is written to its connection where it arrives, without waking the call's task: the task begins the
answer and waits for its end. While a client lags, its news wait in the requests, and go out together once it
has read.
"""

import asyncio
import contextlib
import functools
import logging
from collections.abc import Callable
from typing import Protocol, cast

from aiohttp import hdrs, web

from router.api.arrival import FAILURE
from router.api.connections import Connection
from router.api.errors import internal_error
from router.scheduling.request import Finished, GenerationFailed, Request
from router.text.tokenizer import Token

log = logging.getLogger(__name__)

Opening = Callable[[], tuple["Format", dict[str, str]]]

_HEADERS = {"Content-Type": "text/event-stream", "Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
_COMMENT = b": keep-alive\n\n"


class Format(Protocol):
    """Encodes a dialect's events as bytes."""

    def events(self, index: int, news: list[Token | Finished]) -> bytes:
        """One event per token; `index` says which request they are of."""

    def end(self) -> bytes:
        """The events after the last token of all requests."""

    def failure(self, error: GenerationFailed) -> bytes:
        """The last event of a stream that failed."""


class Streams:
    """Answers calls with streams. What a step brings for all of them is written in one turn of the loop."""

    def __init__(self, keep_alive_s: float):
        """A client is sent a comment after so long without an event."""
        self.keep_alive_s = keep_alive_s
        self._due: list[_Stream] = []

    async def answer(
        self, http: web.Request, requests: list[Request], opening: Opening
    ) -> web.StreamResponse:
        """Answer with the events of all `requests`. `opening` gives format and headers, which tell most once
        one has begun.

        Raises what goes wrong until something is written, so that a refusal has its true status; later
        failures become an event. What takes longer than `keep_alive_s` is bridged with comments, which
        clients ignore: proxies close connections on which nothing is sent.
        """
        stream = _Stream(self, http, requests, opening)
        try:
            await stream.begin()
            await stream.end()
        except ConnectionError:
            http[FAILURE] = "dropped"
        except Exception as error:
            if not stream.response.prepared:
                raise
            failure = _failure_of(error)
            http[FAILURE] = failure.kind
            stream.fail(failure)
        finally:
            stream.close()
        return stream.response

    def write_soon(self, stream: "_Stream") -> None:
        """Write a stream's news behind what the loop does now: the shard's next step is sent first."""
        if not self._due:
            asyncio.get_running_loop().call_soon(self._write)
        self._due.append(stream)

    def _write(self) -> None:
        due, self._due = self._due, []
        for stream in due:
            stream.write()


class _Stream:
    """A response that begins with what is written first: a comment where the first event takes long."""

    def __init__(self, streams: Streams, http: web.Request, requests: list[Request], opening: Opening):
        self.response = web.StreamResponse(headers=_HEADERS)
        self._streams = streams
        self._http = http
        self._requests = requests
        self._opening = opening
        self._format: Format | None = None
        self._headers: dict[str, str] = {}
        self._num_running = len(requests)
        self._fresh: dict[int, None] = {}  # requests with news, in the order in which they came
        self._woken = asyncio.Event()  # at the first news, and at the end
        self._error: Exception | None = None
        self._connection: Connection | None = None  # once events may be written to it
        self._is_chunked = False
        self._loop = asyncio.get_running_loop()
        self._written_at = self._loop.time()
        self._timer: asyncio.TimerHandle | None = None
        for index, request in enumerate(requests):
            request.on_news = functools.partial(self._note, index)
            if request.events or request.outcome is not None:
                self._note(index)

    async def begin(self) -> None:
        """Write the headers and the first event or comment. Raises `GenerationFailed`, `ConnectionError`."""
        try:
            async with asyncio.timeout(self._streams.keep_alive_s):
                await self._woken.wait()
            first = self._next()
        except TimeoutError:
            first, self._headers = _COMMENT, self._opening()[1]
        self.response.headers.update(self._headers)
        await self.response.prepare(self._http)
        self._is_chunked = self.response.headers.get(hdrs.TRANSFER_ENCODING) == "chunked"
        self._timer = self._loop.call_later(self._streams.keep_alive_s, self._check_silence)
        self._connection = cast(Connection, self._http.protocol)
        self._connection.on_writable = self.write
        self._woken.clear()
        self._send(first)
        self.write()

    async def end(self) -> None:
        """Wait until all is written. Raises what went wrong meanwhile."""
        await self._woken.wait()
        if self._error is not None:
            raise self._error

    def write(self) -> None:
        """Write all news, unless the client lags."""
        if self._connection is None:
            return
        try:
            while self._fresh and not self._connection.writing_paused:
                self._send(self._next())
        except Exception as error:
            self._error = error
        if self._error is not None or not self._num_running:
            self._woken.set()

    def fail(self, failure: GenerationFailed) -> None:
        """Write the last event of a stream that failed."""
        with contextlib.suppress(ConnectionError):
            self._send((self._format or self._opening()[0]).failure(failure))

    def close(self) -> None:
        """Write nothing more."""
        for request in self._requests:
            request.on_news = None
        if self._timer is not None:
            self._timer.cancel()
        if self._connection is not None:
            self._connection.on_writable = None
            self._connection = None

    def _note(self, index: int) -> None:
        self._fresh[index] = None
        if self._connection is None:
            self._woken.set()
        else:
            self._streams.write_soon(self)

    def _next(self) -> bytes:
        """The events of the request whose news came first. Raises `GenerationFailed`."""
        index = next(iter(self._fresh))
        request = self._requests[index]
        news = request.take_now()
        if not isinstance(request.outcome, GenerationFailed):  # else that is next
            del self._fresh[index]
        if self._format is None:
            self._format, self._headers = self._opening()
        data = self._format.events(index, news)
        if isinstance(news[-1], Finished):
            self._num_running -= 1
            if not self._num_running:
                data += self._format.end()
        return data

    def _send(self, data: bytes) -> None:
        """Write to the connection itself: aiohttp's writer, a coroutine, costs as much as the system's call.

        Raises `ConnectionError` when the client has gone.
        """
        transport = None if self._connection is None else self._connection.transport
        if transport is None or transport.is_closing():
            raise ConnectionResetError("The client has gone.")
        if data:  # an empty chunk would be the last
            transport.write(b"%x\r\n%b\r\n" % (len(data), data) if self._is_chunked else data)
        self._written_at = self._loop.time()

    def _check_silence(self) -> None:
        silent_s = self._loop.time() - self._written_at
        is_due = silent_s >= self._streams.keep_alive_s
        if is_due and self._connection is not None and not self._connection.writing_paused:
            with contextlib.suppress(ConnectionError):  # who writes next finds out
                self._send(_COMMENT)
        next_s = self._streams.keep_alive_s - (0 if is_due else silent_s)
        self._timer = self._loop.call_later(next_s, self._check_silence)


def _failure_of(error: Exception) -> GenerationFailed:
    if isinstance(error, GenerationFailed):
        return error
    log.error("a stream failed", exc_info=error)
    return internal_error()
