"""A real server before more connections than it has file handles, and before many at once."""

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import msgspec
import psutil
import pytest
from aiohttp import ClientError, ClientSession, TCPConnector

from shard.sim.sim_runner import CostModel
from tests.running import Server

FEW_HANDLES = ("sh", "-c", 'ulimit -n 160 && exec "$@"', "sh")
ASKED = {"inputs": "Once upon a time", "parameters": {"max_new_tokens": 20, "ignore_eos": True}}


FEW = {"inputs": "Once upon a time", "parameters": {"max_new_tokens": 5, "ignore_eos": True}}
BRIEF = {"inputs": "Once", "parameters": {"max_new_tokens": 2, "ignore_eos": True}}
COSTS = CostModel(step_ms=1.0, token_ms=0.0, sequence_ms=0.0, context_token_ms=0.0)
NUM_STREAMS = 1000
NUM_CALLERS = 32
MEGABYTE = 1 << 20


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


@pytest.fixture
def quick(tiny_model: Callable[[str], Path], tmp_path: Path) -> dict[str, object]:
    """Settings of a simulated model whose steps take a millisecond."""
    costs = tmp_path / "costs.json"
    costs.write_bytes(msgspec.json.encode(COSTS))
    return {"model_id": tiny_model("llama"), "device": "sim", "cost_model": costs}


async def test_a_thousand_streams_at_once_all_end_whole(
    serve: Callable[..., Server], quick: dict[str, object], session: ClientSession
) -> None:
    limits = {"max_concurrent_requests": NUM_STREAMS, "max_connections_per_address": NUM_STREAMS}
    settings = {
        "max_connections": 2 * NUM_STREAMS,
        "max_queued_tokens": 100_000,
        "max_batch_size": NUM_STREAMS,
    }
    with serve(**quick, **limits, **settings) as server:
        num_running, are_all_there = 0, asyncio.Event()

        async def tokens() -> int:
            """Read to the end once all streams have begun."""
            nonlocal num_running
            async with session.post(f"{server.url}/generate_stream", json=FEW) as answer:
                assert answer.status == 200, await answer.text()
                num_running += 1
                if num_running == NUM_STREAMS:
                    are_all_there.set()
                await are_all_there.wait()
                return sum([line.startswith(b"data:") async for line in answer.content])

        async with asyncio.timeout(60):
            assert await asyncio.gather(*(tokens() for _ in range(NUM_STREAMS))) == [5] * NUM_STREAMS


async def test_many_small_requests_leave_neither_memory_nor_handles(
    serve: Callable[..., Server], quick: dict[str, object], session: ClientSession
) -> None:
    with serve(**quick) as server:
        every = [psutil.Process(server.pid), *server.children()]

        async def call(number: int) -> None:
            for _ in range(number):
                async with session.post(f"{server.url}/generate", json=BRIEF) as answer:
                    assert answer.status == 200
                    await answer.read()

        async def calls(number: int) -> tuple[float, int]:
            """Megabytes and handles of all processes after so many."""
            await asyncio.gather(*(call(number // NUM_CALLERS) for _ in range(NUM_CALLERS)))
            sizes = [process.memory_info().rss / MEGABYTE for process in every]
            return sum(sizes), sum(process.num_fds() for process in every)

        megabytes, handles = await calls(2560)  # as many as are remembered, and more
        more_megabytes, more_handles = await calls(1280)
        assert more_megabytes < megabytes + 1
        assert more_handles <= handles
