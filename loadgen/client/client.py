"""The client: a pool of kept-alive connections to one server, with timeouts."""

import asyncio
import os
import ssl
from collections.abc import Callable
from time import monotonic
from typing import Any, TypeVar
from urllib.parse import urlsplit

import msgspec

from loadgen.client.answers import NEVER, Cancel, FetchExchange, StreamExchange
from loadgen.client.connection import Connection
from loadgen.client.dialects import Ask, Dialect
from loadgen.client.exchange import Backlog, Exchange
from loadgen.client.records import Outcome, Record

WATCH_S = 0.2
END_TIMEOUT_S = 10.0  # for cancelled tasks to end
CATCH_UP_EVERY = 5  # watch intervals: greatest age of the text in a live view

E = TypeVar("E", bound=Exchange)


class BadUrl(ValueError):
    """Not a server's URL; the message says why."""


class Address(msgspec.Struct, frozen=True):
    """A server's address."""

    host: str
    port: int
    is_tls: bool = False
    base: str = ""  # path in front of every route

    @classmethod
    def parse(cls, url: str) -> "Address":
        """Read `http://host:port[/base]`; a pasted `/v1` at the end is dropped. Raises `BadUrl`."""
        parts = urlsplit(url if "//" in url else f"http://{url}")
        try:
            port = parts.port
        except ValueError:
            raise BadUrl(f"{url} has a port that is not a number from 0 to 65535") from None
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise BadUrl(f"{url} is not a URL like http://127.0.0.1:3000")
        is_tls = parts.scheme == "https"
        base = parts.path.rstrip("/").removesuffix("/v1")
        return cls(parts.hostname, port or (443 if is_tls else 80), is_tls, base)

    @property
    def url(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{'https' if self.is_tls else 'http'}://{host}:{self.port}{self.base}"


class Patience(msgspec.Struct, frozen=True):
    """Timeouts in seconds, each with its own outcome."""

    connect_s: float = 10.0
    first_token_s: float = 300.0
    stall_s: float = 60.0
    total_s: float = 600.0


class Fetched(msgspec.Struct, frozen=True):
    """A whole answer. `status` 0: none came, and `problem` says why."""

    status: int
    headers: dict[str, str] = {}
    body: bytes = b""
    problem: str = ""

    @property
    def is_ok(self) -> bool:
        return 200 <= self.status < 300

    def json(self) -> Any:
        """The body as JSON, None if it is not."""
        try:
            return msgspec.json.decode(self.body)
        except msgspec.DecodeError:
            return None


class Client:
    """Sends any number of concurrent requests to one server. An async context manager."""

    def __init__(
        self, address: Address, headers: dict[str, str] | None = None, patience: Patience | None = None
    ):
        self.address = address
        self.patience = patience or Patience()
        self.name = f"loadgen-{os.getpid()}"  # prefix of every stream's x-request-id
        self._num_watches = 0
        self._headers = headers or {}
        self.idle: list[Connection] = []
        self._live: set[Exchange] = set()
        self._tls = ssl.create_default_context() if address.is_tls else None

    async def __aenter__(self) -> "Client":
        self._loop = asyncio.get_running_loop()
        self._backlog = Backlog(self._loop)
        self._watcher = asyncio.create_task(self._watch())
        return self

    async def __aexit__(self, *_: object) -> None:
        self._watcher.cancel()
        await asyncio.wait([self._watcher], timeout=END_TIMEOUT_S)
        for connection in self.idle:
            connection.abort()
        await asyncio.sleep(0)

    async def stream(
        self, dialect: Dialect, model: str, ask: Ask, record: Record, cancel: Cancel = NEVER
    ) -> None:
        """Send a request and write the answer into `record`. Never raises: errors are the record's outcome.

        A cancelled task closes the connection and ends the record as `cancelled`.
        """
        fields = {"accept": "text/event-stream", "x-request-id": f"{self.name}-{record.number}"}
        request = self._request("POST", dialect.path, dialect.body(ask, model), fields)

        def make() -> StreamExchange:
            return StreamExchange(self._backlog, record, dialect.reader(record), cancel)

        try:
            exchange = await self._carry_out(make, request)
            record.outcome, record.detail = exchange.done.result()
        except OSError as error:
            record.outcome, record.detail = Outcome.CONNECT, _connect_problem(self.address, error)
        except asyncio.CancelledError:
            record.outcome = Outcome.CANCELLED
            raise
        finally:
            record.ended = record.ended or monotonic()

    async def fetch(
        self, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None
    ) -> Fetched:
        """Send a request and return the whole answer. Never raises."""
        payload = b"" if body is None else msgspec.json.encode(body)
        try:
            exchange = await self._carry_out(
                lambda: FetchExchange(self._backlog), self._request(method, path, payload, headers or {})
            )
        except OSError as error:
            return Fetched(0, problem=_connect_problem(self.address, error))
        outcome, detail = exchange.done.result()
        if outcome is not Outcome.OK or exchange.head is None:
            return Fetched(0, problem=detail)
        return Fetched(exchange.head.status, exchange.head.headers, b"".join(exchange.pieces))

    def _request(self, method: str, path: str, body: bytes, headers: dict[str, str]) -> bytes:
        address = self.address
        fields = {
            "host": f"{address.host}:{address.port}",
            "content-type": "application/json",
            "content-length": str(len(body)),
            **self._headers,
            **headers,
        }
        lines = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
        return f"{method} {address.base}{path} HTTP/1.1\r\n{lines}\r\n".encode() + body

    async def _carry_out(self, make: Callable[[], E], request: bytes) -> E:
        """Run one exchange, again if a kept-alive connection had died unnoticed. Raises OSError."""
        is_retry = False
        while True:
            connection = await self._connection()
            was_kept = connection.num_exchanges > 0
            exchange = make()
            await self._run(connection, exchange, request, is_retry)
            is_retry = was_kept and exchange.is_unheard
            if not is_retry:
                return exchange

    async def _run(self, connection: Connection, exchange: Exchange, request: bytes, is_retry: bool) -> None:
        self._live.add(exchange)
        try:
            connection.begin(exchange, request)
            exchange.on_begin(is_retry)
            await asyncio.shield(
                exchange.done
            )  # so that a cancelled task does not cancel the exchange itself
        finally:
            exchange.digest()
            exchange.end(Outcome.CANCELLED, "", monotonic())
            self._live.discard(exchange)
            self._release(connection, exchange)

    def _release(self, connection: Connection, exchange: Exchange) -> None:
        connection.exchange = None
        if exchange.is_clean and not connection.is_lost:
            self.idle.append(connection)
        else:
            connection.abort()

    async def _connection(self) -> Connection:
        while self.idle:
            connection = self.idle.pop()
            if not connection.is_lost:
                return connection
        address = self.address
        async with asyncio.timeout(self.patience.connect_s):
            _, connection = await self._loop.create_connection(
                Connection, address.host, address.port, ssl=self._tls
            )
        return connection

    async def _watch(self) -> None:
        """End streams that exceed a timeout. One pass over all streams, so that none needs a timer."""
        while True:
            await asyncio.sleep(WATCH_S)
            now = monotonic()
            self._num_watches += 1
            for exchange in list(self._live):
                self._watch_one(exchange, now)

    def _watch_one(self, exchange: Exchange, now: float) -> None:
        patience = self.patience
        if not exchange.has_begun:
            if now - exchange.sent_at > patience.first_token_s:
                exchange.end(Outcome.NO_ANSWER, f"nothing in {patience.first_token_s:g} s", now)
            return
        if self._num_watches % CATCH_UP_EVERY == 0:
            exchange.catch_up()
        if now - exchange.last_read > patience.stall_s:
            exchange.digest()
            exchange.end(Outcome.STALL, f"silent for {patience.stall_s:g} s", now)
        elif now - exchange.sent_at > patience.total_s:
            exchange.digest()
            exchange.end(Outcome.ENDLESS, f"still sending after {patience.total_s:g} s", now)


def _connect_problem(address: Address, error: OSError) -> str:
    reason = "no answer in time" if isinstance(error, TimeoutError) else (error.strerror or str(error))
    return f"cannot connect to {address.url}: {reason}"
