"""Whether Redis is there is known without asking it when the question comes."""

import asyncio
import os
import shutil
import signal
from pathlib import Path

import psutil
import pytest

from telemetry import embedded
from telemetry import watch as watch_module
from telemetry.embedded import EmbeddedRedis
from telemetry.watch import RedisWatch, watching


@pytest.fixture
async def server():
    server = EmbeddedRedis(embedded.find_server())
    await server.start()
    yield server
    await server.stop()


async def until(watch, is_ok):
    async with asyncio.timeout(20):
        while watch.is_ok is not is_ok:  # noqa: ASYNC110 (a watch is asked, it does not tell)
            await asyncio.sleep(0.005)


async def test_is_ok_from_the_start_and_again_after_a_death(server):
    watch = RedisWatch(server.url, interval_s=0.01)
    await watch.start()
    assert watch.is_ok
    os.kill(server.pid, signal.SIGSTOP)
    await until(watch, False)
    os.kill(server.pid, signal.SIGKILL)
    await until(watch, True)
    await watch.stop()
    await watch.stop()


async def test_a_redis_that_is_not_there_is_no_error(caplog):
    watch = RedisWatch("redis://127.0.0.1:9/0")
    await watch.start()
    assert not watch.is_ok
    await watch.stop()
    assert "Redis does not answer" in caplog.text


def test_an_address_of_something_else_is_refused():
    with pytest.raises(ValueError, match="URL"):
        RedisWatch("http://localhost")


async def test_without_an_address_an_embedded_one_lives_as_long():
    async with watching(None) as is_ok:
        assert is_ok()
        servers = [child for child in psutil.Process().children() if "redis" in child.name()]
        assert len(servers) == 1
    assert not servers[0].is_running()


async def test_without_any_redis_at_all_the_answer_is_no(monkeypatch, caplog):
    monkeypatch.setattr(watch_module, "find_server", lambda: None)
    async with watching(None) as is_ok:
        assert not is_ok()
    assert "No redis-server was found" in caplog.text
    monkeypatch.setattr(watch_module, "find_server", lambda: Path(shutil.which("false")))
    async with watching(None) as is_ok:
        assert not is_ok()
    assert "did not start" in caplog.text
