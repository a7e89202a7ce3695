"""A shard's end of its connection: one thread reads and answers pings, another runs steps and writes outputs.

The next step waits in memory when one ends, and an output is on the wire before the next step starts: the
device does not wait for the router, nor the router for the device. A third thread prepares other models
meanwhile, at low priority; they are committed between two steps.
"""

import contextlib
import hmac
import logging
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from queue import SimpleQueue
from typing import Protocol

import msgspec

from shard import failure
from shard.energy import Meter, counter_of
from shard.messages import (
    MAX_FRAME_BYTES,
    PROTOCOL_VERSION,
    Commit,
    Committed,
    Discard,
    Failed,
    FrameReader,
    Hello,
    Ping,
    Pong,
    Prepare,
    Prepared,
    Ready,
    ShardConfig,
    Step,
    StepOutput,
    SwapFailed,
    ToRouter,
    ToShard,
    frame,
)
from shard.served_models import ServedModels, Unwanted

log = logging.getLogger(__name__)

_MAX_HELLO_BYTES = 64 * 1024  # from a peer that has not shown the secret yet
_HELLO_TIMEOUT_S = 10.0
_PARTING_S = 2.0
_READ_BYTES = 256 * 1024
_UNUSABLE = (ValueError, OSError, MemoryError, ImportError)  # raised for a model that cannot be served
_PREPARING_NICENESS = 5  # below steps; a lower priority would hold the interpreter's lock for longer


class Runner(Protocol):
    """Runs steps and swaps. Knows no socket."""

    def ready(self) -> Ready: ...
    def run(self, step: Step) -> StepOutput: ...

    def prepare(self, prepare: Prepare) -> Prepared | SwapFailed:
        """Load a model, on its own thread. Raises the errors of loading."""
        ...

    def commit(self, commit: Commit) -> Committed | SwapFailed: ...

    def discard(self, epoch: int) -> None:
        """Drop a prepared model; on any thread."""
        ...


class Refused(Exception):
    """The peer is not a router, or not one that this shard can serve."""


def make_runner(config: ShardConfig) -> Runner:
    """The runner for a device. Only that of a real device imports torch."""
    if config.device == "sim":
        from shard.sim.sim_runner import SimLoader

        return ServedModels(config, SimLoader())
    from shard.loader import ModelLoader

    return ServedModels(config, ModelLoader())


class Connection:
    """A socket that carries frames. Any thread may send."""

    def __init__(self, sock: socket.socket):
        self._sock = sock
        self._sending = threading.Lock()
        self._frames: FrameReader[ToShard] = FrameReader(ToShard, _MAX_HELLO_BYTES)
        self.messages = self._receive()

    def receive_hello(self, secret: str) -> Hello:
        """The router's first frame. Raises `Refused`, after sending the reason."""
        self._sock.settimeout(_HELLO_TIMEOUT_S)
        hello = next(self.messages, None)
        reason = _objection(hello, secret)
        if not isinstance(hello, Hello) or reason is not None:
            self.say_last(Failed(reason or "", permanent=True))
            self._hear_out()
            self.close()
            raise Refused(reason)
        self._sock.settimeout(None)
        self._frames.max_frame_bytes = MAX_FRAME_BYTES
        return hello

    def send(self, message: ToRouter) -> None:
        """Write a frame; a router that has gone is noticed by the reading thread."""
        data = frame(message)
        with self._sending:
            try:
                self._sock.sendall(data)
            except OSError:
                self.close()

    def say_last(self, message: ToRouter) -> None:
        """Write the last frame. Closing at once could discard it while the other side writes."""
        self.send(message)
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        """Close both directions; a reader of `messages` sees the end."""
        try:
            self._sock.shutdown(socket.SHUT_RDWR)
        except OSError:
            self._sock.close()

    def _hear_out(self) -> None:
        """Wait a little for the other side to hang up."""
        self._sock.settimeout(_PARTING_S)
        with contextlib.suppress(OSError):
            while self._sock.recv(_READ_BYTES):
                pass

    def _receive(self) -> Iterator[ToShard]:
        """Messages until the other side is gone or sends invalid frames."""
        try:
            while data := self._sock.recv(_READ_BYTES):
                yield from self._frames.feed(data)
        except (OSError, ValueError):
            return


class Server:
    """Serves one router over one connection."""

    def __init__(
        self, connection: Connection, config: ShardConfig, make: Callable[[ShardConfig], Runner] = make_runner
    ):
        self._connection = connection
        self._config = config
        self._make = make
        self._steps: SimpleQueue[Step | Commit] = SimpleQueue()
        self._preparations: SimpleQueue[Prepare] = SimpleQueue()
        self._runner: Runner | None = None  # None while loading
        self._has_failed = False

    def run(self) -> int:
        """Serve until the connection ends. Returns the exit status: 0 when the router closed it."""
        threading.Thread(target=self._work, name="steps", daemon=True).start()
        for message in self._connection.messages:
            match message:
                case Step() | Commit():
                    self._steps.put(message)
                case Ping(number):
                    self._connection.send(Pong(number))
                case Prepare():
                    self._preparations.put(message)
                case Discard(epoch) if self._runner is not None:
                    self._runner.discard(epoch)
        return 1 if self._has_failed else 0

    def _work(self) -> None:
        """Load the model, then run steps until the process ends."""
        try:
            meter = Meter(counter_of(self._config))
            runner = self._runner = self._make(self._config)
            self._connection.send(msgspec.structs.replace(runner.ready(), energy=meter.source))
        except Exception as error:
            log.debug("The model was not loaded.", exc_info=True)
            is_permanent = isinstance(error, _UNUSABLE) or not self._config.device.startswith("cuda")
            return self._fail(failure.sentence(error, _loading(self._config)), is_permanent)
        threading.Thread(target=self._prepare, args=(runner,), name="preparing", daemon=True).start()
        try:
            self._run_steps(runner, meter)
        except Exception as error:
            log.exception("A step failed.")
            self._fail(str(error) or type(error).__name__, is_permanent=False)

    def _run_steps(self, runner: Runner, meter: Meter) -> None:
        while True:
            match self._steps.get():
                case Step() as step:
                    meter.begin()
                    self._connection.send(meter.end(runner.run(step)))
                case Commit() as commit:
                    self._connection.send(runner.commit(commit))

    def _prepare(self, runner: Runner) -> None:
        """Prepare models on request until the process ends."""
        if sys.platform == "linux":  # where threads have their own priority
            with contextlib.suppress(OSError):  # without permission the priority stays
                os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _PREPARING_NICENESS)
        while True:
            prepare = self._preparations.get()
            try:
                self._connection.send(runner.prepare(prepare))
            except Unwanted:
                self._connection.send(SwapFailed(prepare.epoch, "It was discarded while being prepared."))
            except Exception as error:
                log.debug("A model was not prepared.", exc_info=True)
                reason = failure.sentence(error, _loading(prepare.config))
                self._connection.send(SwapFailed(prepare.epoch, reason))

    def _fail(self, reason: str, is_permanent: bool) -> None:
        self._has_failed = True
        self._connection.say_last(Failed(reason, is_permanent))
        time.sleep(_PARTING_S)  # the process ends earlier, when the router hangs up
        self._connection.close()


def _objection(hello: ToShard | None, secret: str) -> str | None:
    """Why this router cannot be served, in a sentence; None if it can."""
    if not isinstance(hello, Hello) or not hmac.compare_digest(hello.secret.encode(), secret.encode()):
        return "The shard was not given the secret that it asks for."
    if hello.protocol != PROTOCOL_VERSION:
        return f"The router speaks protocol {hello.protocol}, the shard {PROTOCOL_VERSION}."
    return None


def _loading(config: ShardConfig) -> str:
    return f"Loading {config.model} on {config.device}"
