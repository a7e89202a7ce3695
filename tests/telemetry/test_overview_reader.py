"""What a reader in another process learns from Redis: sums of what routers wrote, and their last states."""

import asyncio
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from telemetry import keys
from telemetry.audit import Decision
from telemetry.embedded import find_server
from telemetry.history import Row
from telemetry.overview_reader import OverviewReader
from telemetry.snapshot import ShardView, Snapshot
from telemetry.store import Store
from telemetry.window import Record, Window
from tests.telemetry.redis_server import RedisServer


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[RedisServer]:
    binary = find_server()
    assert binary is not None
    with RedisServer(binary, tmp_path) as server:
        yield server


def router(redis: RedisServer, name: str, num_shards: int = 1) -> Store:
    store = Store(redis.url, "poems", name)
    store.describe = lambda: Snapshot(
        router=name, at=time.time(), shards=[ShardView(id, "serving") for id in range(num_shards)]
    )
    return store


def record(store: Store, tokens: int, shard: int = 0, depth: int = 30, joules: float = 0.0) -> Record:
    window = Window(start=time.time() - 1, end=time.time(), requests=1, tokens_by_exit={depth: tokens})
    window.joules, window.step_ms = joules, 500.0
    window.ttft_ms.add(20.0)
    return Record(shard, "chat", depth, window, store.router)


async def test_sums_are_those_of_all_routers_and_shards(redis: RedisServer) -> None:
    one, two, reader = router(redis, "one", 2), router(redis, "two"), Store(redis.url, "poems", "")
    overviews = OverviewReader(reader)
    one.put([record(one, 10), record(one, 20, shard=1, depth=20, joules=5.0)])
    two.put([record(two, 40)])
    two.audit.append(Decision(id="1", at=1.0, kind="swap"))
    one.history.put(Row(candidate="chat", depth=30, measured_at=1))
    for store in (one, two):
        assert await store.flush()
    for _ in range(2):  # what was read is not counted again
        overview = await overviews.read()
        assert overview is not None
        assert (overview.total.requests, overview.total.tokens, overview.total.tokens_per_s) == (3, 70, 7.0)
        assert [(row.depth, row.tokens_by_exit) for row in overview.models] == [
            (20, {20: 20}),
            (30, {30: 50}),
        ]
        rates = {(row.router, row.shard.id): row.figures for row in overview.shards}
        assert {key: rate.tokens_per_s for key, rate in rates.items()} == {
            ("one", 0): 1.0,
            ("one", 1): 2.0,
            ("two", 0): 4.0,
        }
        assert rates["one", 1].watts == 10.0
        assert rates["one", 0].watts is None
        assert [row.snapshot.router for row in overview.routers] == ["one", "two"]
        assert [decision.id for decision in overview.decisions] == ["1"]
        assert [row.candidate for row in overview.history] == ["chat"]
    two.put([record(two, 1)])
    await two.flush()
    overview = await overviews.read()
    assert overview is not None
    assert (overview.total.requests, overview.total.tokens) == (4, 71)
    for store in (one, two, reader):
        await store.stop()


async def test_a_router_that_is_silent_is_down_with_its_age_and_is_left_out_beside_a_live_one(
    redis: RedisServer,
) -> None:
    one, two, reader = router(redis, "one"), router(redis, "two"), Store(redis.url, "poems", "")
    overviews = OverviewReader(reader)
    await one.flush()
    with redis.client() as client:
        client.pexpire(keys.snapshot("poems", "one"), 1000 * (keys.SNAPSHOT_TTL_S - 100))
    overview = await overviews.read()
    assert overview is not None
    assert not overview.is_alive
    assert overview.routers[0].age_s == pytest.approx(100, abs=5)
    assert len(overview.shards) == 1
    await two.flush()
    overview = await overviews.read()
    assert overview is not None
    assert [(row.snapshot.router, row.is_alive) for row in overview.routers] == [("two", True)]
    for store in (one, two, reader):
        await store.stop()


async def test_without_redis_a_reader_has_nothing_and_a_router_has_itself(redis: RedisServer) -> None:
    one, reader = router(redis, "one"), Store(redis.url, "poems", "")
    own, others = OverviewReader(one), OverviewReader(reader)
    await one.flush()
    redis.stop()
    assert await others.read() is None
    overview = await own.read()
    assert overview is not None
    assert (overview.redis, len(overview.shards)) == ("lost", 1)
    redis.start()
    await one.flush()
    overview = await others.read()
    assert overview is not None
    assert (overview.redis, overview.is_alive) == ("ok", True)
    for store in (one, reader):
        await store.stop()


async def test_another_program_or_version_is_no_trouble(redis: RedisServer) -> None:
    one, reader = router(redis, "one"), Store(redis.url, "poems", "")
    await one.flush()
    with redis.client() as client:
        client.set(keys.snapshot("poems", "one"), b"\xc1 of old")
        client.xadd(keys.ticks("poems", "one"), {"d": b"\xc1 of old"})
        client.xadd(keys.ticks("poems", "one"), {"x": b"another's"})
    overview = await OverviewReader(reader).read()
    assert overview is not None
    assert (overview.routers, overview.total.tokens) == ([], 0)
    await asyncio.gather(one.stop(), reader.stop())


async def test_a_reader_that_has_paused_has_the_last_minute_alone(redis: RedisServer) -> None:
    one, reader = router(redis, "one"), Store(redis.url, "poems", "")
    overviews, ticks = OverviewReader(reader), keys.ticks("poems", "one")
    one.put([record(one, 7)])
    await one.flush()
    with redis.client() as client:  # as if that had been two minutes ago
        [(id, fields)] = client.xrange(ticks)
        client.delete(ticks)
        client.xadd(ticks, fields, id=f"{int(id.partition(b'-')[0]) - 120_000}-0")
    await overviews.read()
    one.put([record(one, 10)])
    await one.flush()
    overview = await overviews.read()
    assert overview is not None
    assert overview.total.tokens == 10
    await asyncio.gather(one.stop(), reader.stop())


async def test_no_window_is_read_for_it_and_what_is_read_is_small_for_many_shards(redis: RedisServer) -> None:
    one, reader = router(redis, "one", 1000), Store(redis.url, "poems", "")
    one.put([record(one, 10, shard) for shard in range(1000)])
    await one.flush()
    with redis.client() as client:
        [(_, windows)] = client.xrange(keys.windows("poems", "one"))
        [(_, tick)] = client.xrange(keys.ticks("poems", "one"))
        client.delete(keys.windows("poems", "one"))
    assert 5 * len(tick[b"d"]) < len(windows[b"d"])
    overview = await OverviewReader(reader).read()
    assert overview is not None
    assert overview.total.tokens == 10_000
    assert {row.figures.tokens_per_s for row in overview.shards} == {1.0}
    await asyncio.gather(one.stop(), reader.stop())
