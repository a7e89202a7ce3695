"""Processes for work on foreign code, bounded in time and memory.

A chat template or a grammar may take hours or all memory, and a thread that runs it cannot be ended.
`python -m router.worker` is such a process. It answers one request after another over a socket, its standard
input, and ends with the router or soon after. This module does not know what the work is.
"""

import atexit
import contextlib
import functools
import resource
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Mapping

import msgspec

from router.child import start_child

MAX_MEMORY_BYTES = 1 << 30  # of a process, the interpreter's own included
WORKER = "router.worker"
_START_TIMEOUT_S = 60.0
_KILL_TIMEOUT_S = 10.0
_LENGTH_BYTES = 4


class Bounds(msgspec.Struct, frozen=True):
    """Limits of one request: how long the router waits, and how much processor time the work may take."""

    wait_s: float
    processor_s: float


class Work(msgspec.Struct, frozen=True, array_like=True):
    """A request to a process: the name of a worker, its input, and a limit of processor time."""

    name: str
    payload: bytes
    processor_s: float


class ProcessEnded(OSError):
    """The process died at its work, by too much processor time or memory, or by a crash."""


class CannotStart(OSError):
    """No process can be started."""


class Processes:
    """A pool of processes, as many as requests are under way at once. Safe on any thread."""

    def __init__(self) -> None:
        self._idle: list[_Process] = []

    def ask(self, name: str, payload: bytes, bounds: Bounds) -> bytes:
        """The answer of the worker `name`. Raises TimeoutError, ProcessEnded or CannotStart."""
        process = self._take()
        try:
            answer = process.ask(Work(name, payload, bounds.processor_s), bounds.wait_s)
        except BaseException:
            process.end()
            raise
        self._idle.append(process)
        return answer

    def start(self) -> None:
        """Start a process ahead of the first request, if possible."""
        with contextlib.suppress(CannotStart):
            self._idle.append(self._take())

    def close(self) -> None:
        """End the processes. Idempotent; a later `ask` starts new ones."""
        while self._idle:
            self._idle.pop().end()

    def _take(self) -> "_Process":
        with contextlib.suppress(IndexError):  # another thread took the last one
            while self._idle:
                process = self._idle.pop()
                if process.is_alive:
                    return process
                process.end()
        return _Process()


class _Process:
    def __init__(self) -> None:
        """Start a process. Raises CannotStart when that fails."""
        ours, theirs = socket.socketpair()
        self._sock = ours
        with theirs:
            command = [sys.executable, "-m", WORKER]
            try:
                self.popen = start_child(command, stdin=theirs.fileno(), stdout=subprocess.DEVNULL)
            except OSError as error:
                ours.close()
                raise CannotStart(str(error)) from error
        try:
            self.ask(None, _START_TIMEOUT_S)
        except OSError as error:
            self.end()
            raise CannotStart("it does not answer") from error

    @property
    def is_alive(self) -> bool:
        return self.popen.poll() is None

    def ask(self, work: Work | None, wait_s: float) -> bytes:
        """Send a request (None: a ping) and wait for the answer. Raises TimeoutError or ProcessEnded."""
        self._sock.settimeout(wait_s)
        try:
            _send(self._sock, msgspec.msgpack.encode(work))
            answer = _receive(self._sock)
        except TimeoutError:
            raise
        except OSError as error:
            raise ProcessEnded(str(error)) from error
        if answer is None:
            raise ProcessEnded("it has ended")
        return answer

    def end(self) -> None:
        self.popen.kill()
        self._sock.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.popen.wait(_KILL_TIMEOUT_S)


@functools.cache
def processes() -> Processes:
    """The router's one pool, shared by all models that it serves."""
    own = Processes()
    atexit.register(own.close)
    return own


def work_for_router(workers: Mapping[str, Callable[[bytes], bytes]]) -> None:
    """Answer the router's requests on standard input until it is gone."""
    sock = socket.socket(fileno=0)
    with contextlib.suppress(ValueError, OSError):  # without such a limit the router's timeout remains
        resource.setrlimit(resource.RLIMIT_AS, (MAX_MEMORY_BYTES, MAX_MEMORY_BYTES))
    while (data := _receive(sock)) is not None:
        work = msgspec.msgpack.decode(data, type=Work | None)
        if work is None:
            _send(sock, b"")
            continue
        signal.setitimer(signal.ITIMER_PROF, work.processor_s)  # its SIGPROF ends the process
        answer = workers[work.name](work.payload)
        signal.setitimer(signal.ITIMER_PROF, 0)
        _send(sock, answer)


def _send(sock: socket.socket, data: bytes) -> None:
    sock.sendall(len(data).to_bytes(_LENGTH_BYTES) + data)


def _receive(sock: socket.socket) -> bytes | None:
    """One message from the socket; None when the other side is gone."""
    length = _receive_exactly(sock, _LENGTH_BYTES)
    return None if length is None else _receive_exactly(sock, int.from_bytes(length))


def _receive_exactly(sock: socket.socket, num_bytes: int) -> bytes | None:
    data = bytearray()
    while len(data) < num_bytes:
        part = sock.recv(num_bytes - len(data))
        if not part:
            return None
        data += part
    return bytes(data)
