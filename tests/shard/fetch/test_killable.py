"""Work that takes no notice of its end is ended, with all that it started, and what it left is removed."""

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from tests.running import ROOT

SCRIPT = """
import contextlib, os, signal, subprocess, sys, time
from pathlib import Path
from shard.fetch.killable import run_killable

left = Path(sys.argv[2])

def stubborn():
    subprocess.Popen(["sleep", "60"])
    left.touch()
    print("begun", flush=True)
    while True:
        with contextlib.suppress(BaseException):
            time.sleep(60)

def killed():
    left.touch()
    os.kill(os.getpid(), signal.SIGKILL)

def done():
    print("done")
    return 3

def out():
    sys.exit(4)

sys.exit(run_killable(globals()[sys.argv[1]], left.unlink))
"""


Start = Callable[[str], subprocess.Popen[str]]


@pytest.fixture
def left(tmp_path: Path) -> Path:
    return tmp_path / "left"


@pytest.fixture
def start(left: Path) -> Iterator[Start]:
    started: list[subprocess.Popen[str]] = []

    def begin(work: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", SCRIPT, work, str(left)]
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        started.append(process)
        return process

    yield begin
    for process in started:
        process.kill()
        process.communicate(timeout=20)


def begun(process: subprocess.Popen[str]) -> list[psutil.Process]:
    """What it consists of, once it works."""
    assert process.stdout is not None
    assert process.stdout.readline() == "begun\n"
    children = psutil.Process(process.pid).children(recursive=True)
    assert len(children) == 2
    return children


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("to_all", [False, True])
def test_work_that_never_listens_is_ended_when_told(
    start: Start, left: Path, number: signal.Signals, to_all: bool
) -> None:
    process = start("stubborn")
    children = begun(process)
    for each in [children[0].pid] * to_all + [process.pid] * 2:
        with contextlib.suppress(ProcessLookupError):
            os.kill(each, number)
    assert process.wait(20) == 128 + number
    assert psutil.wait_procs(children, timeout=20)[1] == []
    assert not left.exists()


def test_work_ends_with_who_waits_for_it(start: Start) -> None:
    process = start("stubborn")
    children = begun(process)
    process.kill()
    assert psutil.wait_procs(children, timeout=20)[1] == []


def test_work_that_the_system_ends_is_cleared_up_after(start: Start, left: Path) -> None:
    assert start("killed").wait(20) == -signal.SIGKILL
    assert not left.exists()


@pytest.mark.parametrize(("work", "code", "said"), [("done", 3, "done\n"), ("out", 4, "")])
def test_its_code_and_its_words_are_handed_on(start: Start, work: str, code: int, said: str) -> None:
    process = start(work)
    assert process.communicate(timeout=20) == (said, "")
    assert process.returncode == code
