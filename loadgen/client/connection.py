"""A kept-alive connection: timestamps reads and passes them to the waiting exchange."""

import asyncio
from time import monotonic
from typing import cast

from loadgen.client.exchange import Exchange


class Connection(asyncio.Protocol):
    """One kept-alive connection; carries one exchange at a time."""

    def __init__(self) -> None:
        self.exchange: Exchange | None = None
        self.transport: asyncio.Transport | None = None
        self.is_lost = False
        self.num_exchanges = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)  # uvloop's transport is no subclass

    def begin(self, exchange: Exchange, request: bytes) -> None:
        assert self.transport is not None
        self.exchange = exchange
        self.num_exchanges += 1
        exchange.sent_at = monotonic()
        self.transport.write(request)

    def data_received(self, data: bytes) -> None:
        at = monotonic()
        if self.exchange is None:
            self.abort()  # the server sent data without a request
        else:
            self.exchange.feed(at, data)

    def connection_lost(self, error: Exception | None) -> None:
        self.is_lost = True
        if self.exchange is not None:
            self.exchange.lost(monotonic(), error)

    def abort(self) -> None:
        self.is_lost = True
        if self.transport is not None:
            self.transport.abort()
