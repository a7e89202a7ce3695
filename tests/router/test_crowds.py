"""A real server before more connections than it has file handles, and before many at once."""

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import psutil
import pytest
from aiohttp import ClientError, ClientSession, TCPConnector

from tests.running import Server

FEW_HANDLES = ("sh", "-c", 'ulimit -n 160 && exec "$@"', "sh")
ASKED = {"inputs": "Once upon a time", "parameters": {"max_new_tokens": 20, "ignore_eos": True}}


@pytest.fixture
async def session() -> AsyncIterator[ClientSession]:
    async with ClientSession(connector=TCPConnector(limit=0)) as session:
        yield session


async def test_with_few_handles_hundreds_of_half_calls_hurt_neither_clients_nor_shards(
    serve: Callable[..., Server], tiny_model: Callable[[str], Path], session: ClientSession
) -> None:
    with (
        serve(FEW_HANDLES, model_id=tiny_model("llama"), device="sim") as server,
        contextlib.ExitStack() as stack,
    ):
        address = "127.0.0.1", int(server.url.rpartition(":")[2])
        for number in range(300):
            sock = stack.enter_context(socket.socket())
            with contextlib.suppress(OSError):
                sock.connect(address)
                sock.sendall(
                    b"POST /generate HTTP/1.1\r\nHost: x\r\n" + b"Content-Length: 99\r\n\r\n{" * (number % 2)
                )
            await asyncio.sleep(0.001)
        shard = next(child for child in server.children() if "--fd" in child.cmdline())
        shard.kill()

        async def is_back() -> bool:
            try:
                async with session.get(f"{server.url}/ops/state") as response:
                    shards = (await response.json()).get("shards", [])
            except ClientError:
                return False
            return [(shard["state"], shard["num_deaths"]) for shard in shards] == [("serving", 1)]

        async with asyncio.timeout(40):
            while not await is_back():  # noqa: ASYNC110 (another process)
                await asyncio.sleep(0.1)
            async with session.post(f"{server.url}/generate", json=ASKED) as response:
                assert response.status == 200
        assert psutil.Process(server.pid).num_fds() <= 160
