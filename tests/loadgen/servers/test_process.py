"""Servers as children: ready, ended with all that they started, and clear when they fail."""

import asyncio
import sys
from pathlib import Path

import psutil
import pytest

from loadgen.client.client import Address, Client
from loadgen.client.server_info import Unusable
from loadgen.servers.process import cores_used, group_cpu_s, paused, running
from tests.loadgen.fake_server import fake

BURN = "import time\nwhile time.process_time() < 0.3: pass\nprint(flush=True)\ntime.sleep(600)"


async def test_nothing_of_a_server_outlives_it(tmp_path: Path):
    async with running(fake(stubborn_child=True), tmp_path / "log") as server:
        async with Client(Address.parse(server.url)) as client:
            assert (await client.fetch("GET", "/health")).is_ok
        process = psutil.Process(server.group)
        family = [process, *process.children(recursive=True)]
        assert len(family) == 2
    _, alive = psutil.wait_procs(family, timeout=10)
    assert not alive


async def test_a_server_is_ended_when_its_user_fails(tmp_path: Path):
    with pytest.raises(RuntimeError, match="mine"):
        async with running(fake(), tmp_path / "log") as server:
            raise RuntimeError("mine")
    assert not psutil.pid_exists(server.group)


async def test_a_server_that_ends_says_why_and_where_its_log_is(tmp_path: Path):
    log = tmp_path / "log"
    with pytest.raises(Unusable, match=r"fake ended: no such model \(log: .*log\)"):
        async with running(fake(dies="no such model"), log):
            pass
    assert log.read_text() == "no such model\n"


async def test_a_paused_group_is_stopped_and_goes_on_afterwards(tmp_path: Path):
    async with running(fake(), tmp_path / "log") as server, Client(Address.parse(server.url)) as client:
        process = psutil.Process(server.group)
        with paused([server.group]):
            while process.status() != psutil.STATUS_STOPPED:  # noqa: ASYNC110 (it has no event for us)
                await asyncio.sleep(0.01)
        assert (await client.fetch("GET", "/health")).is_ok


@pytest.mark.skipif(not Path("/proc").exists(), reason="reads /proc")
async def test_cpu_time_is_that_of_the_group_and_of_no_other():
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", BURN), stdout=asyncio.subprocess.PIPE, start_new_session=True
    )
    assert process.stdout is not None
    try:
        await process.stdout.readline()
        before = group_cpu_s(process.pid)
        assert before is not None
        assert 0.25 < before < 10
        used = await cores_used(process.pid, 0.05)
        assert used is not None
        assert used < 0.5
    finally:
        process.kill()
        await process.wait()
    assert group_cpu_s(process.pid) is None
