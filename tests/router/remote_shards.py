"""Shards that listen, as somebody starts them on another host, and links to them that can be disturbed."""

import asyncio
import contextlib
import socket
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path

from tests.running import ROOT

_TIMEOUT_S = 20.0
_PIECE_BYTES = 4096

Disturb = Callable[[bytes], bytes | None]


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


@contextlib.asynccontextmanager
async def listening_shard(secret: Path) -> AsyncIterator[tuple[int, asyncio.subprocess.Process]]:
    """A shard as somebody starts it on another host."""
    port = free_port()
    command = [sys.executable, "-m", "shard", "--listen", f"tcp://127.0.0.1:{port}"]
    process = await asyncio.create_subprocess_exec(*command, "--secret-file", str(secret), cwd=ROOT)
    try:
        yield port, process
    finally:
        process.kill()
        async with asyncio.timeout(_TIMEOUT_S):
            await process.wait()


class Link:
    """Carries what comes to another port, both ways. `to_router` and `to_shard` may change pieces of it, or
    end the connection by None; `delay_s` holds each piece up.
    """

    def __init__(self) -> None:
        self.delay_s = 0.0
        self.is_stalled = False
        self.to_router: Disturb = bytes
        self.to_shard: Disturb = bytes
        self.num_connections = 0

    @contextlib.asynccontextmanager
    async def to(self, port: int) -> AsyncIterator[int]:
        """Yields the port to call in its place."""

        async def connect(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            self.num_connections += 1
            with contextlib.suppress(OSError):
                shard_reader, shard_writer = await asyncio.open_connection("127.0.0.1", port)
                ways = [
                    asyncio.create_task(self._carry(reader, shard_writer, lambda data: self.to_shard(data))),
                    asyncio.create_task(self._carry(shard_reader, writer, lambda data: self.to_router(data))),
                ]
                await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
                for way in ways:
                    way.cancel()
                shard_writer.transport.abort()
            writer.transport.abort()

        server = await asyncio.start_server(connect, "127.0.0.1", 0)
        try:
            yield server.sockets[0].getsockname()[1]
        finally:
            server.close()

    async def _carry(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, disturb: Disturb
    ) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(_PIECE_BYTES):
                await asyncio.sleep(self.delay_s)
                changed = None if self.is_stalled else disturb(data)
                if changed is None:
                    if self.is_stalled:
                        continue
                    return
                writer.write(changed)
