"""A shard's end of its connection: one thread reads and answers pings, another runs steps and writes outputs.

The next step waits in memory when one ends, and an output is on the wire before the next step starts: the
device does not wait for the router, nor the router for the device.
"""

import contextlib
import hmac
import socket
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from queue import SimpleQueue
from typing import Protocol

from shard.messages import (
    MAX_FRAME_BYTES,
    PROTOCOL_VERSION,
    Failed,
    FrameReader,
    Hello,
    Ping,
    Pong,
    Ready,
    ShardConfig,
    Step,
    StepOutput,
    ToRouter,
    ToShard,
    frame,
)

_MAX_HELLO_BYTES = 64 * 1024  # from someone who has not shown the secret yet
_HELLO_TIMEOUT_S = 10.0
_PARTING_S = 2.0
_READ_BYTES = 256 * 1024


class Runner(Protocol):
    """What runs steps. Knows no socket."""

    def ready(self) -> Ready: ...
    def run(self, step: Step) -> StepOutput: ...


class Refused(Exception):
    """Whoever connected is not the router, or not one that this shard can work for."""


def make_runner(config: ShardConfig) -> Runner:
    """The runner for a device. Only a real one imports torch."""
    if config.device == "sim":
        from shard.sim import SimRunner

        return SimRunner(config)
    from shard.runner import ModelRunner

    return ModelRunner(config)


class Connection:
    """A socket that carries frames. Any thread may send."""

    def __init__(self, sock: socket.socket):
        self._sock = sock
        self._sending = threading.Lock()
        self._frames: FrameReader[ToShard] = FrameReader(ToShard, _MAX_HELLO_BYTES)
        self.messages = self._receive()

    def receive_hello(self, secret: str) -> Hello:
        """The router's first frame. Raises `Refused`, after telling the other side why."""
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
        """Write a frame that nothing follows. Closing at once could discard it, as the other side writes."""
        self.send(message)
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        """End both directions; whoever waits in `messages` sees the end."""
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
        """Messages until the other side is gone or talks nonsense."""
        try:
            while data := self._sock.recv(_READ_BYTES):
                yield from self._frames.feed(data)
        except (OSError, ValueError):
            return


class Server:
    """One router served over one connection."""

    def __init__(
        self, connection: Connection, config: ShardConfig, make: Callable[[ShardConfig], Runner] = make_runner
    ):
        self._connection = connection
        self._config = config
        self._make = make
        self._steps: SimpleQueue[Step] = SimpleQueue()
        self._has_failed = False

    def run(self) -> int:
        """Serve until the connection is gone. Returns the exit status: 0 when it was the router who went."""
        threading.Thread(target=self._work, name="steps", daemon=True).start()
        for message in self._connection.messages:
            match message:
                case Step():
                    self._steps.put(message)
                case Ping(number):
                    self._connection.send(Pong(number))
        return 1 if self._has_failed else 0

    def _work(self) -> None:
        """Load the model, then run steps for as long as the process lives."""
        try:
            runner = self._make(self._config)
            self._connection.send(runner.ready())
        except (ValueError, OSError, MemoryError, ImportError) as error:
            return self._fail(error, permanent=True)
        except Exception as error:
            traceback.print_exc()
            return self._fail(error, permanent=False)
        try:
            self._run_steps(runner)
        except Exception as error:
            traceback.print_exc()
            self._fail(error, permanent=False)

    def _run_steps(self, runner: Runner) -> None:
        while True:
            self._connection.send(runner.run(self._steps.get()))

    def _fail(self, error: Exception, permanent: bool) -> None:
        self._has_failed = True
        self._connection.say_last(Failed(_sentence(error), permanent))
        time.sleep(_PARTING_S)  # the router hangs up long before, at which the process ends
        self._connection.close()


def _objection(hello: ToShard | None, secret: str) -> str | None:
    """Why this is not a router to work for, in a sentence; None if it is."""
    if not isinstance(hello, Hello) or not hmac.compare_digest(hello.secret.encode(), secret.encode()):
        return "The shard was not given the secret that it asks for."
    if hello.protocol != PROTOCOL_VERSION:
        return f"The router speaks protocol {hello.protocol}, the shard {PROTOCOL_VERSION}."
    return None


def _sentence(error: Exception) -> str:
    if isinstance(error, MemoryError) and not str(error):
        return "There is not enough memory for the model."
    return str(error) or type(error).__name__
