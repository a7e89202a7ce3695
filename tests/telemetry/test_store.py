"""What is kept in Redis, and what becomes of it when Redis goes away, comes back, or comes back empty."""

import asyncio
import shutil
import socket
import time
from pathlib import Path

import pytest

from telemetry import keys
from telemetry.audit import Decision, Outcome, new_id
from telemetry.embedded import find_server
from telemetry.history import Row
from telemetry.store import Store
from telemetry.window import Record, Window
from tests.telemetry.redis_server import RedisServer
from tests.telemetry.windows import by_candidate

OFTEN_S = 0.02
SELDOM_S = 3600.0  # flushed by hand
BINARIES = {find_server(), *map(Path, filter(None, map(shutil.which, ("redis-server", "valkey-server"))))}


@pytest.fixture(params=sorted(BINARIES, key=str), ids=str)
def server(request, tmp_path):
    with RedisServer(request.param, tmp_path) as server:
        yield server


@pytest.fixture
async def open_store():
    stores = []

    async def start(server, router="one", deployment="poems", interval_s=SELDOM_S, **settings):
        store = Store(server.url, deployment, router, interval_s, **settings)
        stores.append(store)
        await store.start()
        return store

    yield start
    for store in stores:
        await store.stop()


def record(shard=0, tokens=1, candidate="poet", depth=30, requests=0):
    now = time.time()
    window = Window(start=now, end=now, tokens_by_exit={depth: tokens}, requests=requests)
    return Record(shard, candidate, depth, window)


def decision(kind="swap", **more):
    now = time.time()
    return Decision(id=new_id(now), at=now, kind=kind, **more)


def row(candidate="poet", measured_at=1_000, **more):
    return Row(candidate=candidate, depth=30, measured_at=measured_at, **more)


def tokens_of(records):
    return sorted(record.window.tokens for record in records)


async def until(holds):
    async with asyncio.timeout(20):
        while not holds():  # noqa: ASYNC110 (nobody tells)
            await asyncio.sleep(0.01)


async def test_windows_of_all_routers_are_read_as_one(server, open_store):
    first, second = await open_store(server), await open_store(server, router="other")
    first.put([record(0, 3), record(1, 4)])
    first.put([record(0, 5)])
    second.put([record(0, 6)])
    assert await first.flush()
    assert await second.flush()
    for reader in (first, second):
        records = await reader.records(60)
        assert tokens_of(records) == [3, 4, 5, 6]
        assert by_candidate(records)["poet", 30].tokens == 18


async def test_only_the_last_seconds_are_read(server, open_store):
    store = await open_store(server)
    store.put([record(tokens=1)])
    await store.flush()
    await asyncio.sleep(0.3)
    store.put([record(tokens=2)])
    await store.flush()
    assert tokens_of(await store.records(0.25)) == [2]


async def test_two_deployments_know_nothing_of_each_other(server, open_store):
    mine, yours = await open_store(server), await open_store(server, deployment="songs")
    mine.put([record()])
    mine.audit.append(decision())
    mine.history.put(row())
    await mine.flush()
    await yours.flush()
    assert await yours.records(60) == []
    assert await yours.decisions() == []
    assert yours.history.rows() == []


async def test_every_key_ends_by_itself_and_lies_in_its_deployments_slot(server, open_store):
    store = await open_store(server)
    store.put([record()])
    store.audit.append(decision())
    store.history.put(row())
    await store.flush()
    with server.client() as client:
        found = client.keys("*")
        assert len(found) == 7
        for key in found:
            assert key.startswith(b"{helios:poems}:")
            assert client.ttl(key) > 0


async def test_a_flush_is_one_pipeline_whatever_there_is_to_write(server, open_store, monkeypatch):
    store = await open_store(server)
    calls = []
    connections = store.link.client.connection_pool.connection_class
    send = connections.send_packed_command
    monkeypatch.setattr(
        connections,
        "send_packed_command",
        lambda self, *arguments, **more: calls.append(1) or send(self, *arguments, **more),
    )
    for _ in range(5):
        store.put([record()])
        store.audit.append(decision())
        store.history.put(row())
    await store.flush()
    assert len(calls) == 1


async def test_streams_are_bounded(server, open_store, monkeypatch):
    monkeypatch.setattr(keys, "MAX_DECISIONS", 20)
    monkeypatch.setattr(keys, "MAX_WINDOW_ENTRIES", 20)
    store = await open_store(server)
    for _ in range(500):
        store.put([record()])
        store.audit.append(decision())
    await store.flush()
    with server.client() as client:
        for stream in (keys.decisions("poems"), keys.windows("poems", "one")):
            assert 20 <= client.xlen(stream) < 200, stream


async def test_what_happened_while_redis_was_away_is_there_when_it_is_back(server, open_store, monkeypatch):
    monkeypatch.setattr("telemetry.link.PATIENCE_S", 0.2)
    store = await open_store(server)
    server.freeze()
    store.put([record(tokens=7)])
    made = decision()
    store.audit.append(made)
    assert not await store.flush()
    assert not store.is_ok
    assert await store.records(60) is None
    assert [entry.id for entry in await store.decisions()] == [made.id]
    server.thaw()
    assert await store.flush()
    assert store.is_ok
    assert tokens_of(await store.records(60)) == [7]
    assert store.num_dropped == 0


async def test_a_redis_that_comes_back_empty_is_given_history_and_decisions_again(server, open_store):
    store = await open_store(server, interval_s=OFTEN_S)
    made = decision()
    store.audit.append(made)
    store.history.put(row(throughput=12.5))
    await until(lambda: not store.audit.unwritten() and not store.history.unwritten())
    server.stop()
    await until(lambda: not store.is_ok)
    store.audit.update(made.id, outcome=Outcome.COMMITTED)
    server.start()
    await until(lambda: store.is_ok and not store.audit.unwritten() and not store.history.unwritten())
    fresh = await open_store(server, router="fresh")
    assert [entry.outcome for entry in await fresh.decisions()] == [Outcome.COMMITTED]
    assert fresh.history.rows() == store.history.rows() != []
    store.put([record(tokens=9)])
    await until(lambda: not len(store.windows))
    assert tokens_of(await fresh.records(60)) == [9]


async def test_what_waits_is_bounded_and_what_is_given_up_is_counted(server, open_store):
    store = await open_store(server, max_waiting_bytes=20_000)
    server.stop()
    for number in range(1, 201):
        store.put([record(tokens=number), record(tokens=1000)])
    kept = 200 - store.num_dropped // 2
    assert 5 < kept < 100
    assert not await store.flush()
    server.start()
    assert await store.flush()
    found = tokens_of(await store.records(60))
    assert found == [*range(201 - kept, 201), *[1000] * kept]  # the latest
    assert store.num_dropped == 2 * (200 - kept)


async def test_writing_twice_is_writing_once(server, open_store, monkeypatch):
    store = await open_store(server)
    store.put([record(tokens=7)])
    monkeypatch.setattr(store.windows, "written", lambda entries: None)  # as if the answer was lost
    assert await store.flush()
    assert await store.flush()
    assert tokens_of(await store.records(60)) == [7]


def fill(client):
    client.config_set("maxmemory", "1")


def forbid_writing(client):
    client.replicaof("127.0.0.1", 1)


def exchange(client):
    """As if another program's Redis had taken its place."""
    client.flushall()
    for key in (keys.windows("poems", "one"), keys.ticks("poems", "one"), keys.decisions("poems")):
        client.set(key, "something else")


def put_right(client):
    client.config_set("maxmemory", "0")
    client.replicaof("NO", "ONE")
    client.flushall()


@pytest.mark.parametrize(
    ("spoil", "said"),
    [(fill, "used memory"), (forbid_writing, "read only replica"), (exchange, "wrong kind of value")],
)
async def test_a_redis_that_answers_and_refuses_is_no_use(server, open_store, caplog, spoil, said):
    store = await open_store(server)
    with server.client() as client:
        spoil(client)
    store.put([record(tokens=1)])
    made = decision()
    store.audit.append(made)
    assert not await store.flush()
    assert not store.is_ok
    assert said in caplog.text
    assert [entry.id for entry in await store.decisions()] == [made.id]
    with server.client() as client:
        put_right(client)
    assert await store.flush()
    assert store.is_ok
    assert tokens_of(await store.records(60)) == [1]
    assert [entry.id for entry in await store.decisions()] == [made.id]


@pytest.mark.parametrize("years", [10, -10])
async def test_a_clock_that_jumps_costs_nothing(server, open_store, monkeypatch, years):
    """Forth or back, then back to the truth."""
    store, now = await open_store(server), time.time
    seconds = years * 365 * 86_400
    for number, jump in enumerate([0, seconds, 0], 1):
        monkeypatch.setattr(time, "time", lambda jump=jump: now() + jump)
        store.put([record(tokens=number)])
        made = decision()
        store.audit.append(made)
        assert await store.flush()
        assert store.is_ok
        assert number in tokens_of(await store.records(60))
        assert made.id in [entry.id for entry in await store.decisions()]
        assert await store.decision(made.id) is not None
    assert store.num_dropped == 0


async def test_without_an_address_decisions_are_kept_in_memory(open_store):
    store = Store(None, "poems", "one")
    await store.start()
    made = decision()
    store.audit.append(made)
    store.put([record()])
    assert not store.is_ok
    assert [entry.id for entry in await store.decisions()] == [made.id]
    assert await store.decision(made.id) == store.audit.find(made.id)
    assert await store.records(60) is None
    await store.stop()
    await store.stop()


async def test_decisions_of_all_routers_are_read_with_what_came_of_them(server, open_store):
    writer, reader = await open_store(server), await open_store(server, router="other")
    first, second = decision("swap", why="because"), decision("pin", by="ada")
    writer.audit.append(first)
    reader.audit.append(second)
    writer.audit.update(first.id, outcome=Outcome.ROLLED_BACK, error="no such file", phases_ms={"read": 3.5})
    await writer.flush()
    await reader.flush()
    assert [entry.id for entry in await reader.decisions()] == sorted([first.id, second.id], reverse=True)
    found = await reader.decision(first.id)
    assert found == writer.audit.find(first.id)
    assert (found.outcome, found.why) == (Outcome.ROLLED_BACK, "because")
    assert len(await reader.decisions(limit=1)) == 1
    assert await reader.decisions(since=time.time()) == []
    assert await reader.decision("17-nothing") is None
    assert await reader.decision("nothing") is None


async def test_what_a_router_had_begun_when_it_was_killed_is_settled_by_others(
    server, open_store, monkeypatch
):
    monkeypatch.setattr("telemetry.store.SETTLE_EVERY", 2)
    killed, alive = await open_store(server, router="killed"), await open_store(server, router="alive")
    for store in (killed, alive):
        store.audit.append(decision("swap", why=store.router))
        store.audit.append(decision("stay", why=store.router, outcome=Outcome.COMMITTED))
        await store.flush()
    with server.client() as client:
        client.zadd(keys.routers("poems"), {"killed": time.time() - 60})
    other = await open_store(server, router="other", interval_s=OFTEN_S)
    await until(lambda: other.audit.latest() and not other.audit.unwritten())
    found = {(entry.kind, entry.why): entry for entry in await alive.decisions()}
    assert len(found) == 4
    assert found["swap", "killed"].outcome is Outcome.ROLLED_BACK
    assert found["swap", "killed"].error == "The router ended before it was done."
    assert found["swap", "killed"].router == "killed"
    assert found["swap", "alive"].outcome is None
    assert found["stay", "killed"].outcome is Outcome.COMMITTED
    (mistaken,) = (entry for entry in killed.audit.latest() if entry.kind == "swap")
    killed.audit.update(mistaken.id, outcome=Outcome.COMMITTED)  # it was cut off from Redis, no more
    await killed.flush()
    for store in (killed, other):
        settled = await store.decision(mistaken.id)
        assert settled.outcome is Outcome.COMMITTED
        assert settled in await store.decisions()


async def test_of_two_measurements_the_later_one_counts_in_whatever_order_they_are_written(
    server, open_store
):
    first, second = await open_store(server), await open_store(server, router="other")
    first.history.put(row(measured_at=2_000, throughput=2.0))
    second.history.put(row(measured_at=1_000, throughput=1.0))
    second.history.put(row("bard", measured_at=1_000))
    for store in 3 * (first, second):  # who writes late may undo for a moment
        await store.flush()
    for store in (first, second):
        assert [(found.candidate, found.measured_at) for found in store.history.rows()] == [
            ("bard", 1_000),
            ("poet", 2_000),
        ]
        assert store.history.unwritten() == {}


async def test_what_others_wrote_that_cannot_be_read_is_left_out(server, open_store):
    store = await open_store(server)
    with server.client() as client:
        client.hset(keys.history("poems"), "poet@3", b"[1]")
        client.xadd(keys.decisions("poems"), {"d": b"{}"})
        client.xadd(keys.decisions("poems"), {"who": b"somebody else"})
        client.xadd(keys.windows("poems", "one"), {"d": b"?"}, id="1-1")
        client.xadd(keys.windows("poems", "one"), {"who": b"somebody else"})
        client.zadd(keys.routers("poems"), {b"\xff\xfe": time.time()})
    assert await store.flush()
    assert store.history.rows() == []
    assert await store.decisions() == []
    assert await store.records(60) == []


async def test_gathering_happens_before_a_flush(server, open_store):
    store = await open_store(server)
    store.on_flush.append(lambda: store.put([record(tokens=5)]))
    await store.flush()
    assert tokens_of(await store.records(60)) == [5]


async def test_the_last_second_is_written_at_the_end(server, open_store):
    store, reader = await open_store(server), await open_store(server, router="other")
    store.put([record(tokens=5)])
    await store.stop()
    assert tokens_of(await reader.records(60)) == [5]


async def test_a_password_is_sent(tmp_path, caplog):
    with RedisServer(find_server(), tmp_path, "--requirepass", "s3cret") as server:
        wrong = Store(server.url + "?password=wrong", "poems", "one")
        right = Store(server.url + "?password=s3cret", "poems", "one")
        assert not await wrong.flush()
        assert "invalid username-password pair" in caplog.text
        assert await right.flush()
        await wrong.stop()
        await right.stop()


def free_port():
    """With room for the port of a cluster's own talk, 10000 above."""
    while True:
        with socket.create_server(("127.0.0.1", 0)) as probe:
            port = probe.getsockname()[1] - 20_000
        if port > 1024:
            return port


async def test_in_a_cluster_the_node_that_has_the_keys_is_found(tmp_path):
    """And looked for again from the address given, when it is gone."""
    asked, owner = (RedisServer(find_server(), folder, *options) for folder, *options in _cluster(tmp_path))
    with asked, owner, asked.client() as first, owner.client() as second:
        second.execute_command("CLUSTER", "ADDSLOTS", *range(16384))
        first.execute_command("CLUSTER", "MEET", "127.0.0.1", second.config_get("port")["port"])
        store = Store(f"redis://127.0.0.1:{first.config_get('port')['port']}", "poems", "one")
        store.put([record(tokens=7)])
        store.audit.append(decision())
        async with asyncio.timeout(20):
            while not await store.flush():  # noqa: ASYNC110 (until the nodes know each other)
                await asyncio.sleep(0.05)
        assert tokens_of(await store.records(60)) == [7]
        assert len(second.keys("*")) == 6
        assert store.link.node != store.link.url
        owner.stop()
        assert not await store.flush()
        assert store.link.node == store.link.url
        await store.stop()


def _cluster(tmp_path):
    for name in ("asked", "owner"):
        (tmp_path / name).mkdir()
        yield tmp_path / name, "--cluster-enabled", "yes", "--bind", "127.0.0.1", "--port", str(free_port())


async def test_a_gatherer_that_fails_ends_nothing(server, open_store, caplog):
    store = await open_store(server, interval_s=OFTEN_S)
    calls = []

    def fail():
        calls.append(1)
        if len(calls) == 1:
            raise RuntimeError("a fault of ours")
        store.put([record(tokens=5)])

    store.on_flush.append(fail)
    await until(lambda: len(calls) > 2)
    assert "serving goes on" in caplog.text
    assert 5 in tokens_of(await store.records(60))
