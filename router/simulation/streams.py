"""Clients that read streams and count their events: as little work a token as a client can do."""

import asyncio
import re
from typing import cast

import msgspec

_EVENT = b"data: "
_STATUS = re.compile(rb"HTTP/1.1 (\d+)")

BODIES: dict[str, tuple[str, dict[str, object]]] = {
    "tgi": ("/generate_stream", {"inputs": "Hello", "parameters": {"max_new_tokens": 0}}),
    "chat": (
        "/v1/chat/completions",
        {"messages": [{"role": "user", "content": "Hello"}], "stream": True, "max_tokens": 0},
    ),
    "whole": ("/generate", {"inputs": "Hello", "parameters": {"max_new_tokens": 0, "details": True}}),
}


def call(dialect: str, num_tokens: int) -> bytes:
    """A whole HTTP request for an answer of so many tokens."""
    path, body = BODIES[dialect]
    text = msgspec.json.encode(body).replace(b'tokens":0', b'tokens":%d' % num_tokens)
    lines = f"POST {path} HTTP/1.1\r\nHost: router\r\nContent-Type: application/json\r\n"
    return f"{lines}Content-Length: {len(text)}\r\n\r\n".encode() + text


class Crowd:
    """All clients together. `problem` is the first status that is no 200, or an end before `close`."""

    def __init__(self) -> None:
        self.num_events = 0
        self.problem = ""
        self._transports: list[asyncio.Transport] = []
        self.is_over = False

    async def open(self, host: str, port: int, call: bytes, num_streams: int) -> None:
        """Send the call on so many connections."""
        loop = asyncio.get_running_loop()
        for _ in range(num_streams):
            transport, _ = await loop.create_connection(lambda: _Reader(self, call), host, port)
            self._transports.append(transport)

    def close(self) -> None:
        """Leave in the middle of all streams."""
        self.is_over = True
        for transport in self._transports:
            transport.abort()


class _Reader(asyncio.Protocol):
    def __init__(self, crowd: Crowd, call: bytes):
        self._crowd = crowd
        self._call = call
        self._has_begun = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        cast(asyncio.Transport, transport).write(self._call)

    def data_received(self, data: bytes) -> None:
        if not self._has_begun:
            self._has_begun = True
            status = _STATUS.match(data)
            if status is None or status[1] != b"200":
                self._crowd.problem = self._crowd.problem or data[:200].decode("latin-1")
        self._crowd.num_events += data.count(_EVENT)

    def connection_lost(self, exc: Exception | None) -> None:
        if not self._crowd.is_over:
            self._crowd.problem = self._crowd.problem or "a stream has ended early"
