"""Processes that a test starts, a real `helios serve` among them: each answers in time or says why it cannot.

Whatever becomes of a test, the wait for the end of its processes is bounded.
"""

import contextlib
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Self

import psutil

ROOT = Path(__file__).parent.parent
READY_TIMEOUT_S = 90
ANSWER_TIMEOUT_S = 60
END_TIMEOUT_S = 20


class Server:
    """Started by `serving`. Its standard output is read up to the line that says it is ready."""

    def __init__(self, process: subprocess.Popen[str], log: Path):
        self.process = process
        self.url = ""
        self.ready_line = ""
        self.said = ""  # on standard output, up to that line
        self._log = log

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def log(self) -> str:
        """What it has written to standard error so far."""
        return self._log.read_text(encoding="utf-8")

    @property
    def pid(self) -> int:
        return self.process.pid

    def children(self) -> list[psutil.Process]:
        """Every process below it now: shards, the embedded Redis."""
        return psutil.Process(self.pid).children(recursive=True)

    def wait_until_ready(self) -> None:
        """Raises `AssertionError` with the log when it ends, or says nothing, before it is ready."""
        assert self.process.stdout is not None
        with _killed_after(READY_TIMEOUT_S, self.process):
            for line in self.process.stdout:
                self.said += line
                if "http://" in line:
                    self.ready_line = line
                    break
        if not self.ready_line:
            raise AssertionError(f"not ready, exit code {self.process.wait(END_TIMEOUT_S)}:\n{self.log}")
        self.url = re.findall(r"http://[^\s/]+", self.ready_line)[0]

    def is_accepting(self) -> bool:
        """What /readyz says; False too when nobody is there to say it."""
        try:
            with urllib.request.urlopen(self.url + "/readyz", timeout=5) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False

    def stop(self, blow: signal.Signals = signal.SIGTERM, timeout_s: float = 40) -> int:
        """Signal it, wait for its end, return its exit code. Again is harmless."""
        if self.process.poll() is None:
            self.process.send_signal(blow)
        code = self.process.wait(timeout_s)
        if self.process.stdout is not None:
            self.process.stdout.close()
        return code

    def kill(self) -> None:
        self.stop(signal.SIGKILL)


class Child:
    """A process of Python's, killed when its block ends. Its standard output is for `first_line`."""

    def __init__(self, *arguments: str, **more: Any):
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115 (closed with the process)
        self.process = subprocess.Popen(
            [sys.executable, *arguments],
            **{"cwd": ROOT, "stdout": subprocess.PIPE, "stderr": self._errors, "text": True, **more},
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait(END_TIMEOUT_S)
        if self.process.stdout is not None:
            self.process.stdout.close()
        self._errors.close()

    def first_line(self) -> str:
        """What it says first. Raises `AssertionError` with its complaints when it ends, or says nothing."""
        assert self.process.stdout is not None
        with _killed_after(ANSWER_TIMEOUT_S, self.process):
            line = str(self.process.stdout.readline())
        if not line:
            status = self.process.wait(END_TIMEOUT_S)
            self._errors.seek(0)
            raise AssertionError(f"no answer, exit code {status}:\n{self._errors.read()}")
        return line


@contextlib.contextmanager
def _killed_after(seconds: float, process: subprocess.Popen[str]) -> Iterator[None]:
    watchdog = threading.Timer(seconds, process.kill)
    watchdog.daemon = True
    watchdog.start()
    try:
        yield
    finally:
        watchdog.cancel()


def command(settings: dict[str, object]) -> list[str]:
    """The command line of `helios serve` for settings in the configuration's own names."""
    flags = []
    for name, value in settings.items():
        flag = "--" + name.replace("_", "-")
        flags.append(flag if value is True else f"{flag}={value}")
    return [sys.executable, "-m", "helios", "serve", *flags]


def environment() -> dict[str, str]:
    """One thread per process: tests of several processes share few cores."""
    return os.environ | {"OMP_NUM_THREADS": "1"}


def serving(folder: Path, settings: dict[str, object], within: Sequence[str] = ()) -> Server:
    """Start it, on this machine only and on a free port unless the settings say otherwise; do not wait.

    `within` are words to put before the command, such as those of `prlimit`.
    """
    settings = {"hostname": "127.0.0.1", "port": 0} | settings
    log = folder / "stderr.log"
    with log.open("w") as stderr:
        process = subprocess.Popen(
            [*within, *command(settings)],
            cwd=ROOT,
            env=environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
            start_new_session=True,
        )
    return Server(process, log)
