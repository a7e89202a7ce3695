"""A Redis that a test may stop, freeze and start again; empty after every start."""

import os
import signal
import subprocess
import time
from pathlib import Path
from typing import Self

import psutil
import redis

TIMEOUT_S = 20.0


class RedisServer:
    """On a socket in `folder`. `options` are of redis-server's command line."""

    def __init__(self, binary: Path, folder: Path, *options: str):
        self._command = [str(binary), "--port", "0", "--save", "", "--dir", str(folder), *options]
        self._socket = folder / "socket"
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def url(self) -> str:
        return f"unix://{self._socket}"

    def start(self) -> None:
        """Return once it answers."""
        command = [*self._command, "--unixsocket", str(self._socket)]
        self._process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        deadline = time.monotonic() + TIMEOUT_S
        while not self._answers():
            assert self._process.poll() is None, "Redis has ended"
            assert time.monotonic() < deadline, "Redis did not start"
            time.sleep(0.01)

    def stop(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait(TIMEOUT_S)
            self._process = None

    def freeze(self) -> None:
        """Accept connections, and say nothing."""
        assert self._process is not None
        os.kill(self._process.pid, signal.SIGSTOP)
        deadline = time.monotonic() + TIMEOUT_S
        while psutil.Process(self._process.pid).status() != psutil.STATUS_STOPPED:
            assert time.monotonic() < deadline, "Redis cannot be frozen"
            time.sleep(0.001)

    def thaw(self) -> None:
        assert self._process is not None
        os.kill(self._process.pid, signal.SIGCONT)

    def client(self) -> redis.Redis:
        return redis.from_url(self.url, protocol=2)

    def _answers(self) -> bool:
        try:
            with self.client() as client:
                return bool(client.ping())
        except redis.AuthenticationError:
            return True
        except redis.RedisError:
            return False
