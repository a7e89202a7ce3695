"""A whole server and its Redis: what is kept, and that nobody who is served notices when it cannot be."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from aiohttp import ClientSession
from redis import Redis

from shard.sim.sim_runner import CostModel
from telemetry import keys
from telemetry.embedded import find_server
from telemetry.store import Store
from telemetry.window import Window
from tests.running import Server
from tests.telemetry.redis_server import RedisServer
from tests.telemetry.windows import by_candidate, merged

NUM_STREAMS = 32
PROMPT = "Write a Python program that prints a poem."


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[RedisServer]:
    binary = find_server()
    assert binary is not None
    with RedisServer(binary, tmp_path) as server:
        yield server


@pytest.fixture
def served(
    serve: Callable[..., Server], tiny_model: Callable[[str], Path], redis: RedisServer, tmp_path: Path
) -> Iterator[Server]:
    costs = tmp_path / "costs.json"
    costs.write_bytes(msgspec.json.encode(CostModel(step_ms=10.0, token_ms=0.0, sequence_ms=0.0)))
    settings = {"model_id": tiny_model("llama"), "served_model_name": "poet", "device": "sim", "watts": 50}
    with serve(**settings, cost_model=costs, redis_url=redis.url, deployment="poems") as server:
        yield server


@contextlib.asynccontextmanager
async def reading(redis: RedisServer) -> AsyncIterator[Store]:
    store = Store(redis.url, "poems", "reader")
    yield store
    await store.stop()


async def generate(session: ClientSession, server: Server, num_tokens: int) -> int:
    """Tokens streamed."""
    asked = {"inputs": PROMPT, "parameters": {"max_new_tokens": num_tokens, "ignore_eos": True}}
    async with session.post(f"{server.url}/generate_stream", json=asked) as answer:
        assert answer.status == 200
        lines = [line async for line in answer.content if line.startswith(b"data:")]
    assert b'"generated_text"' in lines[-1]
    return len(lines)


async def state(session: ClientSession, server: Server) -> str:
    async with session.get(f"{server.url}/ops/state") as answer:
        found: dict[str, Any] = await answer.json()
    return str(found["redis"])


async def until_is(session: ClientSession, server: Server, wanted: str) -> None:
    async with asyncio.timeout(20):
        while await state(session, server) != wanted:  # noqa: ASYNC110 (another process)
            await asyncio.sleep(0.1)


async def until_kept(store: Store, num_tokens: int) -> Window:
    """All that is kept, once it has so many tokens."""
    async with asyncio.timeout(20):
        while True:
            window = merged(record.window for record in await store.records(600) or [])
            if window.tokens >= num_tokens:
                return window
            await asyncio.sleep(0.1)


async def test_what_was_served_is_kept(served: Server, redis: RedisServer) -> None:
    async with ClientSession() as session, reading(redis) as store:
        made = await asyncio.gather(*(generate(session, served, 20) for _ in range(4)))
        window = await until_kept(store, 80)
        assert sum(made) == window.tokens == 80
        assert list(by_candidate(await store.records(600) or [])) == [("poet", 30)]
    assert (window.requests, window.failures) == (4, 0)
    assert (window.ttft_ms.num, window.itl_ms.num) == (4, 76)
    assert list(window.classes) == ["code"]
    assert window.computed_tokens >= 80
    fit = window.cost.fit()
    assert fit is not None
    assert fit.decode_ms(30) > 1
    per_token = window.joules_per_token
    assert per_token is not None
    assert per_token > 0


async def test_with_redis_away_tokens_flow_and_what_they_told_is_kept_later(
    served: Server, redis: RedisServer
) -> None:
    async with ClientSession() as session, reading(redis) as store:
        await until_is(session, served, "ok")
        streams = asyncio.gather(*(generate(session, served, 200) for _ in range(NUM_STREAMS)))
        redis.freeze()
        await until_is(session, served, "lost")
        assert await generate(session, served, 5) == 5
        redis.thaw()
        await until_is(session, served, "ok")
        assert sum(await streams) == 200 * NUM_STREAMS
        window = await until_kept(store, 200 * NUM_STREAMS + 5)
        assert window.tokens == 200 * NUM_STREAMS + 5


async def test_a_redis_that_comes_back_empty_is_filled_again(served: Server, redis: RedisServer) -> None:
    async with ClientSession() as session, reading(redis) as store:
        streams = asyncio.gather(*(generate(session, served, 100) for _ in range(NUM_STREAMS)))
        redis.stop()
        await until_is(session, served, "lost")
        redis.start()
        await until_is(session, served, "ok")
        assert sum(await streams) == 100 * NUM_STREAMS
        assert await generate(session, served, 7) == 7
        assert (await until_kept(store, 7)).tokens >= 7


def fill(client: Redis) -> None:
    client.config_set("maxmemory", "1")


def forbid_writing(client: Redis) -> None:
    client.replicaof("127.0.0.1", 1)


def exchange(client: Redis) -> None:
    """As if another program's Redis had taken its place."""
    client.flushall()
    client.set(keys.history("poems"), "something else")


@pytest.mark.parametrize("spoil", [fill, forbid_writing, exchange])
async def test_with_a_redis_that_refuses_streams_are_complete(
    served: Server, redis: RedisServer, spoil: Callable[[Redis], None]
) -> None:
    async with ClientSession() as session:
        await until_is(session, served, "ok")
        streams = asyncio.gather(*(generate(session, served, 50) for _ in range(NUM_STREAMS)))
        with redis.client() as client:
            spoil(client)
        await until_is(session, served, "lost")
        assert await generate(session, served, 5) == 5
        assert sum(await streams) == 50 * NUM_STREAMS


async def test_neither_keys_nor_texts_are_kept(
    serve: Callable[..., Server], tiny_model: Callable[[str], Path], redis: RedisServer
) -> None:
    settings = {"model_id": tiny_model("llama"), "device": "sim", "deployment": "poems"}
    secrets = {"api_key": "s3cret-key", "admin_key": "s3cret-admin"}
    asked = {"messages": [{"role": "user", "content": "s3cret-prompt"}], "max_tokens": 5}
    with serve(**settings, **secrets, redis_url=redis.url) as server:
        async with ClientSession() as session, reading(redis) as store:
            key = {"authorization": "Bearer s3cret-key", "x-request-id": "s3cret-name"}
            async with session.post(f"{server.url}/v1/completions", json=asked, headers=key) as answer:
                assert answer.status == 400
            body = {"prompt": "s3cret-prompt", "max_tokens": 5}
            async with session.post(f"{server.url}/v1/completions", json=body, headers=key) as answer:
                assert answer.status == 200
            admin = {"authorization": "Bearer s3cret-admin"}
            async with session.post(f"{server.url}/ops/drain", json={}, headers=admin) as answer:
                assert answer.status == 200
            await until_kept(store, 5)
            assert await store.decisions()
        with redis.client() as client:
            streams = [client.xrange(name) for name in client.scan_iter(_type="stream")]
            others = [client.hgetall(keys.history("poems")), client.zrange(keys.routers("poems"), 0, -1)]
        assert len(streams) == 3  # the diary, windows, ticks
        assert "s3cret" not in f"{streams} {others} {server.log}"


def test_who_must_know_joules_and_cannot_is_refused_at_the_start_with_a_sentence(
    serve: Callable[..., Server], tiny_model: Callable[[str], Path], tmp_path: Path
) -> None:
    file = tmp_path / "repository.toml"
    file.write_text(f'objective = "energy"\n[[candidate]]\nname = "poet"\nmodel = "{tiny_model("llama")}"\n')
    usual = {"repository": file, "device": "sim", "redis_url": "redis://127.0.0.1:1"}
    with pytest.raises(AssertionError, match="not ready, exit code 1") as caught:
        serve(**usual)
    assert str(caught.value).splitlines()[-1] == (
        "helios serve: Joules are needed, by the objective or a limit of watts, but nothing here tells them "
        "(neither NVML nor RAPL): state the power of a busy shard with --watts."
    )
    with serve(**usual, watts=40) as server:
        assert server.is_accepting()
