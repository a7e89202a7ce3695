"""A run that hangs ends by itself, fails, and says where it hung."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.running import ROOT

HANGS = """
import asyncio, subprocess, sys, threading
import pytest

async def wait_for_a_child_that_never_answers():
    while True:
        try:
            await asyncio.Event().wait()
        except BaseException:
            pass

@pytest.fixture
async def child():
    with open("child", "w") as file:
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
        file.write(str(child.pid))
    yield
    await wait_for_a_child_that_never_answers()

async def test_with_a_teardown_that_hangs(child):
    pass

def test_that_passes():
    pass
"""


def run(folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    (folder / "test_hanging.py").write_text(HANGS)
    (folder / "conftest.py").write_text('pytest_plugins = ["tests.hang_guard"]')
    (folder / "pytest.ini").write_text("[pytest]\nasyncio_mode = auto\ntimeout = 1\n")
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *options]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=90)


def is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z"


@pytest.mark.parametrize(
    "options",
    [("-p", "no:xdist", "-o", "test_grace=2"), ("-n", "2", "-o", "suite_timeout=12")],
    ids=["its own bound", "the bound of the suite, in a worker"],
)
def test_a_teardown_that_hangs_ends_the_run_and_shows_where(tmp_path: Path, options: tuple[str, ...]) -> None:
    ran = run(tmp_path, *options)
    assert ran.returncode == 1
    said = ran.stdout + ran.stderr
    assert "at test_hanging.py::test_with_a_teardown_that_hangs" in said
    assert "It hangs here" in said
    assert "Thread 0x" in said
    assert "<Task " in said
    assert "in wait_for_a_child_that_never_answers" in said
    assert not is_running(int((tmp_path / "child").read_text()))
