"""Whether Redis is there is known without asking it when the question comes."""

import asyncio
import os
import signal

import pytest

from telemetry import embedded
from telemetry.embedded import EmbeddedRedis
from telemetry.watch import RedisWatch


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
