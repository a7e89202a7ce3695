"""The whole server with a simulated shard: what it leaves behind, how it ends, what it never loads."""

import asyncio
import json
import random
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from aiohttp import ClientSession

from tests.running import Server

LONG = {"inputs": "Once upon a time", "parameters": {"max_new_tokens": 60, "ignore_eos": True}}


@pytest.fixture
def server(serve: Callable[..., Server], tiny_model: Callable[[str], Path]) -> Iterator[Server]:
    with serve(model_id=tiny_model("llama"), device="sim", max_concurrent_requests=64) as server:
        yield server


@pytest.fixture
async def session() -> AsyncIterator[ClientSession]:
    async with ClientSession() as session:
        yield session


async def get(session: ClientSession, url: str) -> Any:
    async with session.get(url) as response:
        return await response.json()


async def status_of(session: ClientSession, url: str) -> int:
    async with session.get(url) as response:
        return response.status


async def until(is_true: Callable[[], Awaitable[bool]]) -> None:
    """Ask until it holds: all that can be done from outside of a process."""
    async with asyncio.timeout(20):
        while not await is_true():  # noqa: ASYNC110 (another process has no event to wait for)
            await asyncio.sleep(0.02)


async def test_200_clients_that_leave_at_random_leave_no_block_used(
    server: Server, session: ClientSession
) -> None:
    chosen = random.Random(7)

    async def leave_early(delay_s: float) -> int:
        try:
            async with (
                asyncio.timeout(delay_s),
                session.post(f"{server.url}/generate_stream", json=LONG) as call,
            ):
                await call.read()
                return call.status
        except TimeoutError:
            return 0

    statuses = await asyncio.gather(*(leave_early(chosen.uniform(0.01, 0.8)) for _ in range(200)))
    assert 0 in statuses
    assert set(statuses) <= {0, 200, 429}

    async def is_idle() -> bool:
        state = await get(session, f"{server.url}/ops/state")
        [shard] = state["shards"]
        return state["running"] == state["waiting"] == 0 and shard["num_free_blocks"] == shard["num_blocks"]

    await until(is_idle)
    listed = await get(session, f"{server.url}/ops/requests")
    assert all(request["status"] == "finished" for request in listed["requests"])


async def test_what_does_not_fit_is_refused_and_what_fits_ends(
    server: Server, session: ClientSession
) -> None:
    async def call() -> tuple[int, str | None]:
        async with session.post(f"{server.url}/generate", json=LONG) as response:
            await response.read()
            return response.status, response.headers.get("Retry-After")

    answers = await asyncio.gather(*(call() for _ in range(160)))
    assert sum(status == 200 for status, _ in answers) >= 64
    refused = [retry for status, retry in answers if status == 429]
    assert len(refused) == 160 - sum(status == 200 for status, _ in answers)
    assert refused
    assert all(retry is not None and int(retry) >= 1 for retry in refused)


async def test_told_to_stop_it_refuses_anew_and_finishes_what_runs(
    server: Server, session: ClientSession
) -> None:
    async with session.post(f"{server.url}/generate_stream", json=LONG) as running:
        assert running.status == 200
        await running.content.readline()
        server.process.send_signal(signal.SIGTERM)

        async def is_told() -> bool:
            return await status_of(session, f"{server.url}/readyz") == 503

        await until(is_told)
        assert await status_of(session, f"{server.url}/livez") == 200
        assert await status_of(session, f"{server.url}/health") == 200
        async with session.post(f"{server.url}/generate", json=LONG) as refused:
            assert refused.status == 429
            assert "Retry-After" in refused.headers
        events = [line async for line in running.content if line.startswith(b"data: ")]
    last = json.loads(events[-1].removeprefix(b"data: "))
    assert last["index"] == 60
    assert last["generated_text"] is not None
    children = server.children()
    assert await asyncio.to_thread(server.process.wait, 20) == 0
    assert not any(child.is_running() for child in children)


async def test_the_router_loads_no_torch_and_stays_small(server: Server, session: ClientSession) -> None:
    await asyncio.gather(*(session.post(f"{server.url}/generate", json=LONG) for _ in range(32)))
    router = psutil.Process(server.pid)
    assert not any("torch" in mapped.path for mapped in router.memory_maps())
    assert router.memory_info().rss < 200e6


async def test_metrics_follow_what_happened(server: Server, session: ClientSession) -> None:
    async with session.post(f"{server.url}/generate", json=LONG) as response:
        assert response.status == 200
    async with session.get(f"{server.url}/metrics") as response:
        lines = dict(line.rsplit(" ", 1) for line in (await response.text()).splitlines() if line[0] != "#")
    model = next(name.split('"')[1] for name in lines if name.startswith("helios_e2e_seconds_count"))
    assert lines["tgi_request_generated_tokens_sum"] == "60.0"
    assert lines[f'helios_ttft_seconds_count{{model="{model}"}}'] == "1.0"
    assert lines[f'helios_itl_seconds_count{{model="{model}"}}'] == "59.0"
    assert lines[f'helios_shards_serving{{model="{model}"}}'] == "1.0"
    assert sum(float(value) for name, value in lines.items() if name.startswith("helios_tokens_total")) == 60
    assert (
        lines[f'helios_kv_blocks{{model="{model}",shard="0"}}']
        == lines[f'helios_kv_blocks_free{{model="{model}",shard="0"}}']
    )
