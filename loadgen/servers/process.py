"""Runs a server as a child process: a free port, a log file, a clean end. Knows no particular server."""

import asyncio
import contextlib
import os
import signal
import socket
import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from pathlib import Path

import msgspec

from loadgen.client.client import Address, Client
from loadgen.client.server_info import Unusable

READY_S, STOP_S = 600.0, 30.0
ASK_EVERY_S = 0.1
LAST_WORDS, LAST_BYTES = 5, 4096  # the end of its log that is shown when it fails


class ServerCommand(msgspec.Struct, frozen=True):
    """How to start a server: `command` gives the command line for a port of 127.0.0.1."""

    name: str
    command: Callable[[int], Sequence[str]]
    ready_path: str
    environment: dict[str, str] = {}


class RunningServer(msgspec.Struct, frozen=True):
    """A server that is ready. `group` is the group of its processes."""

    url: str
    command: tuple[str, ...]
    group: int


@contextlib.asynccontextmanager
async def running(server: ServerCommand, log: Path) -> AsyncIterator[RunningServer]:
    """Start a server; yields it when ready. Its output goes to `log`. Raises `Unusable` with the log's end.

    The server leads a process group of its own, so that nothing it started outlives it.
    """
    port = _free_port()
    command = tuple(server.command(port))
    with log.open("wb") as output:
        process = await asyncio.create_subprocess_exec(
            *command,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=output,
            stderr=asyncio.subprocess.STDOUT,
            env={**os.environ, **server.environment},
            start_new_session=True,
        )
    try:
        url = f"http://127.0.0.1:{port}"
        await _ready(server, process, url, log)
        yield RunningServer(url, command, process.pid)
    finally:
        await _stop(process)


async def _ready(server: ServerCommand, process: asyncio.subprocess.Process, url: str, log: Path) -> None:
    try:
        async with asyncio.timeout(READY_S), Client(Address.parse(url)) as client:
            while not (await client.fetch("GET", server.ready_path)).is_ok:
                if process.returncode is not None:
                    raise Unusable(f"{server.name} ended: {_end_of(log)} (log: {log})")
                await asyncio.sleep(ASK_EVERY_S)
    except TimeoutError:
        raise Unusable(
            f"{server.name} was not ready in {READY_S:.0f} s: {_end_of(log)} (log: {log})"
        ) from None


async def _stop(process: asyncio.subprocess.Process) -> None:
    """End a server, then whatever of its group is left."""
    if process.returncode is None:
        process.terminate()
    try:
        async with asyncio.timeout(STOP_S):
            await process.wait()
    except TimeoutError:
        pass
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        await process.wait()


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def _end_of(log: Path) -> str:
    """The last lines of a log, as one."""
    lines = log.read_bytes()[-LAST_BYTES:].decode("utf-8", "replace").split("\n")
    return " ".join([line.strip() for line in lines if line.strip()][-LAST_WORDS:]) or "it wrote nothing"


@contextlib.contextmanager
def paused(groups: Iterable[int]) -> Iterator[None]:
    """Stop groups of processes, and continue them afterwards."""
    groups = list(groups)
    try:
        _tell(groups, signal.SIGSTOP)
        yield
    finally:
        _tell(groups, signal.SIGCONT)


def _tell(groups: Iterable[int], number: signal.Signals) -> None:
    for group in groups:
        with contextlib.suppress(ProcessLookupError):  # it has ended, as requests to it will tell
            os.killpg(group, number)


def group_cpu_s(group: int) -> float | None:
    """CPU seconds that the processes of a group have used; None where there is no /proc."""
    ticks, is_known = 0, False
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            _, _, after_name = stat.read_text().rpartition(")")  # a name may hold spaces
            fields = after_name.split()
            if int(fields[2]) == group:
                ticks, is_known = ticks + int(fields[11]) + int(fields[12]), True
    return ticks / os.sysconf("SC_CLK_TCK") if is_known else None


async def cores_used(group: int, for_s: float) -> float | None:
    """Cores that a group keeps busy over the next `for_s` seconds."""
    before, began = group_cpu_s(group), time.monotonic()
    await asyncio.sleep(for_s)
    after = group_cpu_s(group)
    if before is None or after is None:
        return None
    return (after - before) / (time.monotonic() - began)
