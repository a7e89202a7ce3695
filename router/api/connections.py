"""Client connections: their number, how long each may wait for its client, and answers to malformed HTTP.

A connection waits for its client while a head or a body is incomplete, while nobody reads what was written,
and between calls. The first two end after `Patience.client_s`. At the limit of connections the one that has
waited longest is closed for a new one, so that a server full of idle or hostile connections still answers.
"""

import asyncio
import enum
import ipaddress
import logging
from collections import Counter
from collections.abc import Callable
from typing import Any, cast

import msgspec
from aiohttp import web
from aiohttp.http_exceptions import InvalidURLError
from aiohttp.streams import StreamReader
from aiohttp.web_protocol import RequestHandler, _ErrInfo

from router.api.errors import (
    Refused,
    error_body,
    error_response,
    from_http_exception,
    internal_error,
    is_openai,
)

log = logging.getLogger(__name__)

_LOOK_EVERY_S = 1.0  # more often if `Patience` is only a few seconds
_LOOKED_AT_ONCE = 256  # connections checked before yielding to the event loop
_LEAST_BYTES_PER_S = 500  # of a head or body that may take longer than `client_s`
_RETRY_AFTER_S = 5


class Bounds(msgspec.Struct, frozen=True):
    """Connections that may be open at once."""

    total: int = 1000
    per_address: int = 500


class Patience(msgspec.Struct, frozen=True):
    """Seconds for which a client may keep a connection waiting."""

    client_s: float = 60.0  # with half a call, or without reading a byte of what is ready for it
    idle_s: float = 75.0  # between two calls


class Awaited(enum.Enum):
    """What a connection waits for from its client."""

    CALL = "the next call"
    HEAD = "the rest of a head"
    BODY = "the rest of a body"
    READING = "that it reads"


class Connection(RequestHandler):
    """One connection. `awaited` and `waited_s` were updated by the last `update_wait`."""

    __slots__ = (
        "_body",
        "_num_body",
        "_num_head",
        "_num_unsent",
        "_since",
        "_wait",
        "address",
        "on_writable",
        "waited_s",
    )

    def __init__(self, manager: "Connections", **options: Any):
        super().__init__(manager, loop=asyncio.get_running_loop(), **options)
        self.address = ""
        self.waited_s = 0.0
        self.on_writable: Callable[[], None] | None = None  # called when a client that lagged has read
        self._wait: tuple[Awaited | None, int] = (None, 0)  # what for, and in which call
        self._since = 0.0
        self._body: StreamReader | None = None  # of the last call whose head is complete
        self._num_head = 0  # bytes of a head that is not complete
        self._num_body = 0  # bytes since the last head
        self._num_unsent = 0  # bytes, at the last `update_wait`

    @property
    def awaited(self) -> Awaited | None:
        """What is awaited from the client; None while the server is at work."""
        return self._wait[0]

    def data_received(self, data: bytes) -> None:
        num_calls, is_head = self._request_count, self._is_body_whole
        super().data_received(data)
        if self._request_count != num_calls:
            self._num_head = self._num_body = 0
            self._note_calls()
        elif is_head:
            self._num_head += len(data)
        else:
            self._num_body += len(data)

    def resume_writing(self) -> None:
        super().resume_writing()
        if self.on_writable is not None:
            self.on_writable()

    def _note_calls(self) -> None:
        """Note the parsed calls. If the last one is a parse error within a body, fail the body's reader."""
        if not self._messages:
            return
        call, body = self._messages[-1]
        if isinstance(call, _ErrInfo) and self._body is not None and not self._is_body_whole:
            self._messages.pop()
            self._break_off(self._body, _reason(call.exc))
        self._body = body

    def _break_off(self, body: StreamReader, reason: str) -> None:
        if self._current_request is None and not self._messages and self.transport is not None:
            self.transport.close()  # the error was answered, and later input dropped
            return
        body.set_exception(web.RequestPayloadError(reason))
        self._lingering_time = 0.0
        self.close()

    def update_wait(self, now: float) -> None:
        """Update what the connection waits for, and since when."""
        wait = (self._what_is_awaited(), self._request_count)
        if wait != self._wait:
            self._wait, self._since = wait, now
        self.waited_s = now - self._since if wait[0] is not None else 0.0

    def is_overdue(self, client_s: float) -> bool:
        """True if the client took too long. A head or body that keeps arriving may take longer."""
        match self.awaited:
            case Awaited.HEAD:
                num_come = self._num_head
            case Awaited.BODY:
                num_come = self._num_body
            case Awaited.READING:
                num_come = 0
            case _:
                return False
        return self.waited_s > client_s + num_come / _LEAST_BYTES_PER_S

    def give_up(self) -> None:
        """Close the connection, after an error response unless one has begun. Cancels its handler."""
        if self.transport is None:
            return
        if self.awaited is Awaited.READING:
            self.transport.abort()
            return
        if self.awaited in (Awaited.HEAD, Awaited.BODY):
            self.transport.write(_LATE)
        self.transport.close()

    def turn_away(self) -> None:
        if self.transport is not None:
            self.transport.write(_FULL)
            self.transport.close()

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """Answer a call that cannot be parsed in JSON, and keep its content out of the log."""
        if status == 400:
            reason = _reason(exc)
            log.info("A call from %s is no valid HTTP: %s.", request.remote, reason)
            failure = Refused(f"The call is no valid HTTP: {reason}.", 400, "malformed")
        else:
            log.error("A call from %s failed.", request.remote, exc_info=exc)
            failure = internal_error()
        if request.writer.output_size > 0:
            raise ConnectionError("An answer has begun.")
        response = error_response(failure, openai=False)
        response.force_close()
        return response

    @property
    def _is_body_whole(self) -> bool:
        """What comes next belongs to a head, also where the last call is not taken up or answered yet."""
        return self._body is None or self._body.is_eof()

    @property
    def _is_between_calls(self) -> bool:
        return self._waiter is not None and not self._waiter.done()

    def _what_is_awaited(self) -> Awaited | None:
        if self._is_unread():
            return Awaited.READING
        if self._is_between_calls:
            return Awaited.HEAD if self._num_head else Awaited.CALL
        request = self._current_request
        return Awaited.BODY if request is not None and not request.content.is_eof() else None

    def _is_unread(self) -> bool:
        """The client has read nothing of the pending output since the last `update_wait`."""
        before = self._num_unsent
        self._num_unsent = 0 if self.transport is None else self.transport.get_write_buffer_size()
        return 0 < before <= self._num_unsent


class Connections(web.Server):
    """All client connections. `watch` must run as long as they are accepted."""

    def __init__(self, server: web.Server, bounds: Bounds, patience: Patience):
        """Takes the place of `server`, whose handlers it calls."""
        super().__init__(
            _in_json(server.request_handler),
            request_factory=server.request_factory,
            handler_cancellation=True,  # a client that goes away cancels its handler
        )
        self._bounds = bounds
        self._patience = patience
        self._open: dict[Connection, str] = {}
        self._by_address: Counter[str] = Counter()
        self._waiting: dict[Connection, None] = {}  # as of the last `update_wait`, the longest wait first

    def __call__(self) -> RequestHandler:
        return Connection(
            self,
            access_log=None,
            auto_decompress=False,  # would run on the event loop, before the key is checked
            keepalive_timeout=self._patience.idle_s,
        )

    def connection_made(self, handler: RequestHandler, transport: asyncio.Transport) -> None:
        super().connection_made(handler, transport)
        connection = cast(Connection, handler)
        connection.address = client_of(transport.get_extra_info("peername"))
        if not self._has_room_for(connection.address):
            connection.turn_away()
        self._open[connection] = connection.address
        self._by_address[connection.address] += 1

    def connection_lost(self, handler: RequestHandler, exc: BaseException | None = None) -> None:
        super().connection_lost(handler, exc)
        address = self._open.pop(cast(Connection, handler), None)
        if address is not None:
            self._by_address[address] -= 1
            if self._by_address[address] == 0:
                del self._by_address[address]

    async def watch(self) -> None:
        """Close connections that wait too long, until cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(min(_LOOK_EVERY_S, self._patience.client_s / 4))
            waiting = []
            for number, connection in enumerate(list(self._open)):
                connection.update_wait(loop.time())
                if connection.is_overdue(self._patience.client_s):
                    connection.give_up()
                elif connection.awaited is not None:
                    waiting.append(connection)
                if number % _LOOKED_AT_ONCE == _LOOKED_AT_ONCE - 1:
                    await asyncio.sleep(0)
            waiting.sort(key=lambda connection: connection.waited_s, reverse=True)
            self._waiting = dict.fromkeys(waiting)

    def _has_room_for(self, address: str) -> bool:
        """True if there is room, if need be after closing a connection that kept the server waiting."""
        if self._by_address[address] >= self._bounds.per_address:
            return self._gives_way(address)
        return len(self._open) < self._bounds.total or self._gives_way(None)

    def _gives_way(self, address: str | None) -> bool:
        for connection in list(self._waiting):
            if address in (None, connection.address):
                del self._waiting[connection]
                connection.update_wait(asyncio.get_running_loop().time())
                if connection.awaited is not None and connection in self._open:
                    connection.give_up()
                    return True
        return False


class Runner(web.AppRunner):
    """Runs an application with bounded connections; `watch` must run beside it."""

    def __init__(self, app: web.Application, bounds: Bounds, patience: Patience, shutdown_timeout_s: float):
        super().__init__(app, shutdown_timeout=shutdown_timeout_s)
        self._limits = bounds, patience

    async def _make_server(self) -> web.Server:
        self.connections = Connections(await super()._make_server(), *self._limits)
        return self.connections


def client_of(peername: Any) -> str:
    """A client's IPv4 address or IPv6 /64 network; "" if unknown."""
    try:
        address = ipaddress.ip_address(peername[0])
    except (TypeError, ValueError, IndexError):
        return ""
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped is not None:
            return str(address.ipv4_mapped)
        return str(ipaddress.ip_network((address, 64), strict=False))
    return str(address)


def _in_json(handler: Any) -> Any:
    """Wrap a handler so that refusals before any middleware, such as of an unknown Expect, are JSON too."""

    async def handle(request: web.BaseRequest) -> web.StreamResponse:
        try:
            return cast(web.StreamResponse, await handler(request))
        except web.HTTPException as error:
            failure = from_http_exception(error, request.method, request.path)
            return error_response(failure, is_openai(request.path))

    return handle


def _reason(error: BaseException | None) -> str:
    """The part of aiohttp's parse error that quotes nothing of the call."""
    if isinstance(error, InvalidURLError):
        return "its URL is none"
    said = getattr(error, "message", "") or "it cannot be parsed"
    return str(said).partition("\n")[0].partition(":")[0].removesuffix(".")


def _parting(status: str, failure: Refused, *headers: str) -> bytes:
    """A whole response, for a connection that is closed after it."""
    body = error_body(failure, openai=False)
    lines = [
        f"HTTP/1.1 {status}",
        "Content-Type: application/json",
        f"Content-Length: {len(body)}",
        "Connection: close",
        *headers,
    ]
    return "\r\n".join([*lines, "", ""]).encode() + body


_LATE = _parting("408 Request Timeout", Refused("The call took too long to arrive.", 408, "timeout"))
_FULL = _parting(
    "429 Too Many Requests",
    Refused("The server has as many connections as it can take.", 429, "overloaded"),
    f"Retry-After: {_RETRY_AFTER_S}",
)
