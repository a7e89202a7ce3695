"""Shards as processes and on other hosts: they start, they end with their router, they ask for a secret."""

import asyncio
import socket
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from aiohttp import web

from router.fleet import launcher
from router.fleet.client import Patience, ShardDied
from router.fleet.dispatcher import Dispatcher
from router.fleet.launcher import ChildLauncher, RemoteLauncher
from shard.messages import ShardConfig
from tests.router.fakes import expected_answer, make_spec
from tests.router.remote_shards import listening_shard
from tests.router.sim_serving import FAST, shard_processes, simulated, text_of, until
from tests.running import Child

CONFIG = ShardConfig("m", device="sim")
ROOT = Path(__file__).parents[3]
ROUTER = """
import asyncio, pathlib
from router.fleet.launcher import ChildLauncher
from router.fleet.client import Patience
from shard.messages import ShardConfig

async def main():
    await ChildLauncher(0, Patience()).start(ShardConfig("m", device="sim"), lambda: None)
    print("serving", flush=True)
    await asyncio.sleep(60)

asyncio.run(main())
"""


async def test_a_child_is_started_and_ended(tmp_path: Path) -> None:
    launcher = ChildLauncher(0, Patience())
    _, ready = await launcher.start(CONFIG, lambda: None)
    assert ready.device == "sim"
    [process] = shard_processes()
    await launcher.end()
    await launcher.end()
    assert not process.is_running()


async def test_a_child_that_does_not_end_by_itself_is_killed() -> None:
    launcher = ChildLauncher(0, Patience())
    await launcher.start(CONFIG, lambda: None)
    [process] = shard_processes()
    process.suspend()
    await launcher.end()
    assert not process.is_running()


async def test_starts_that_fail_again_and_again_are_of_no_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")
    launcher = ChildLauncher(0, Patience())
    deaths = []
    for _ in range(3):
        with pytest.raises(ShardDied, match="ended") as died:
            await launcher.start(CONFIG, lambda: None)
        deaths.append(died.value.permanent)
        await launcher.end()
    assert deaths == [False, False, True]


@pytest.mark.parametrize(
    ("end", "reason"),
    [
        ("kill -KILL $$", "was ended by SIGKILL: most likely the machine has run out of memory"),
        ("kill -ILL $$", "was ended by SIGILL: this CPU lacks an instruction"),
        ("kill -SEGV $$", "was ended by SIGSEGV: --log-level debug shows where"),
        ("exit 3", "ended with exit status 3: what it wrote before says why"),
    ],
)
async def test_a_child_that_dies_without_a_word_is_told_of_by_its_end(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, end: str, reason: str
) -> None:
    python = tmp_path / "python"
    python.write_text(f"#!/bin/sh\n{end}\n")
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))
    launcher = ChildLauncher(0, Patience())
    with pytest.raises(ShardDied) as died:
        await launcher.start(CONFIG, lambda: None)
    await launcher.end()
    assert died.value.reason.startswith("The process that was to load m on sim ")
    assert reason in died.value.reason


async def test_a_child_that_cannot_be_started_at_all_is_told_of(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    launcher = ChildLauncher(0, Patience())
    with pytest.raises(ShardDied, match=r"No process can be started for it: .*No such file"):
        await launcher.start(CONFIG, lambda: None)
    await launcher.end()


def test_a_shard_ends_when_its_router_is_killed() -> None:
    with Child("-c", ROUTER) as router:
        assert router.first_line() == "serving\n"
        [child] = psutil.Process(router.process.pid).children()
    psutil.wait_procs([child], timeout=20)
    assert not child.is_running() or child.status() == psutil.STATUS_ZOMBIE


async def test_a_remote_shard_serves_one_router_after_the_other(tmp_path: Path, secret: Path) -> None:
    async with listening_shard(secret) as (port, process):
        spec = make_spec(20, 20)
        for _ in range(2):
            settings = {"shard_addresses": (f"tcp://127.0.0.1:{port}",), "shard_secret_file": str(secret)}
            async with simulated(tmp_path, **settings) as sim:
                answer = await text_of(sim.dispatcher.submit(spec))
                assert answer == "".join(f"{id} " for id in expected_answer(spec, FAST))
        assert process.returncode is None


async def test_streams_go_on_when_a_remote_connection_is_lost(tmp_path: Path, secret: Path) -> None:
    async with listening_shard(secret) as (port, _):
        spec = make_spec(20, 200)
        settings = {"shard_addresses": (f"tcp://127.0.0.1:{port}",), "shard_secret_file": str(secret)}
        async with simulated(tmp_path, **settings) as sim:
            request = sim.dispatcher.submit(spec)
            await until(lambda: len(request.outputs) > 10)
            connection_of(sim.dispatcher).abort()
            assert await text_of(request) == "".join(f"{id} " for id in expected_answer(spec, FAST))
            assert request.num_shard_deaths == 1


async def test_a_router_with_the_wrong_secret_is_told_so_and_the_right_one_served(
    tmp_path: Path, secret: Path
) -> None:
    async with listening_shard(secret) as (port, _):
        wrong = tmp_path / "wrong"
        wrong.write_text("open barley")
        address = (f"tcp://127.0.0.1:{port}",)
        with pytest.raises(ShardDied, match="was not given the secret"):
            async with simulated(tmp_path, shard_addresses=address, shard_secret_file=str(wrong)):
                raise AssertionError("unreachable")
        async with simulated(tmp_path, shard_addresses=address, shard_secret_file=str(secret)) as sim:
            await text_of(sim.dispatcher.submit(make_spec()))


async def test_a_router_whose_shard_is_an_http_server_says_so(tmp_path: Path, secret: Path) -> None:
    async def handle(http: web.BaseRequest) -> web.Response:
        return web.Response()

    runner = web.ServerRunner(web.Server(handle))
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    address = (f"tcp://127.0.0.1:{runner.addresses[0][1]}",)
    with pytest.raises(ShardDied, match=f"At {address[0]}: What answers is no shard: it speaks HTTP."):
        async with simulated(tmp_path, shard_addresses=address, shard_secret_file=str(secret)):
            raise AssertionError("unreachable")
    await runner.cleanup()


async def test_a_router_whose_shard_says_nothing_says_so(
    tmp_path: Path, secret: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(launcher, "SILENT_S", 0.1)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"tcp://127.0.0.1:{silent.getsockname()[1]}"
        starting = asyncio.create_task(
            RemoteLauncher(address, 0, "sesame", Patience()).start(CONFIG, lambda: None)
        )
        await until(lambda: bool(caplog.records))
        starting.cancel()
        await asyncio.wait([starting])
    assert f"What listens at {address} has said nothing yet: is it a shard?" in caplog.text


def connection_of(dispatcher: Dispatcher) -> asyncio.Transport:
    client = dispatcher.engines[0].client
    assert client is not None and client.transport is not None
    return client.transport


def test_a_shard_that_listens_asks_for_a_secret() -> None:
    command = [sys.executable, "-m", "shard", "--listen", "tcp://127.0.0.1:1"]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=30)
    assert ended.returncode == 2
    assert "--listen needs --secret-file" in ended.stderr


def test_a_simulated_shard_and_its_router_never_load_torch() -> None:
    modules = "shard.__main__, shard.sim.sim_runner, router.fleet.dispatcher"
    code = f"import sys, {modules}; print('torch' in sys.modules)"
    ended = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=30)
    assert (ended.stdout, ended.stderr) == ("False\n", "")
