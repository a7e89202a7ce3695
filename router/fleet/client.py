"""A connection to one shard: sends steps and swaps, receives answers, and checks that the shard is alive.

A shard is alive if it answers, not if it is connected. Silence is counted in unanswered pings, so that a
stall of the router's own event loop is not mistaken for the shard's.
"""

import asyncio
from collections.abc import Callable
from typing import cast

import msgspec

from shard.messages import (
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
    Step,
    StepOutput,
    SwapFailed,
    ToRouter,
    ToShard,
    frame,
)
from telemetry import tasks

Asked = Step | Prepare | Commit | Discard
Answered = StepOutput | Prepared | Committed | SwapFailed

_BEATS_PER_TIMEOUT = 4
_LOADING_TIMEOUT_MS = 120_000  # importing torch and mapping weights can keep every thread waiting


class ShardDied(Exception):
    """A shard is gone. `permanent`: it reported that a restart is of no use."""

    def __init__(self, reason: str, permanent: bool = False):
        super().__init__(reason)
        self.reason = reason
        self.permanent = permanent


class ShardVanished(ShardDied):
    """A shard's connection ended without a reason given."""


class Patience(msgspec.Struct, frozen=True):
    """How long a shard may keep silent, and how long a step may take."""

    heartbeat_ms: float = 10_000
    step_ms: float = 60_000


class ShardClient(asyncio.Protocol):
    """One connection to a shard. Calls `wake` when there are answers to take, and when the shard has died."""

    def __init__(self, patience: Patience, wake: Callable[[], None]):
        self.last_heard: float | None = None  # loop time in seconds
        self._patience = patience
        self._wake = wake
        self._loop = asyncio.get_running_loop()
        self._ready: asyncio.Future[Ready] = self._loop.create_future()
        self.transport: asyncio.Transport | None = None
        self._frames: FrameReader[ToRouter] = FrameReader(ToRouter)
        self._answers: list[Answered] = []
        self._death: ShardDied | None = None
        self._num_unanswered_steps = 0  # a commit counts as a step
        self._committing: int | None = None  # epoch
        self._num_silent_beats = 0
        self._num_step_beats = 0
        self._heart: asyncio.Task[None] | None = None

    @property
    def is_late(self) -> bool:
        """Silent for longer than a healthy shard, though not yet given up."""
        return self._num_silent_beats > 1 or (self._num_unanswered_steps > 0 and self._num_step_beats > 1)

    async def open(self, hello: Hello) -> Ready:
        """Say hello; return when the model is loaded. Raises `ShardDied`."""
        self._write(hello)
        self._heart = tasks.begin(self._beat(), "The heartbeat of a shard")
        return await self._ready

    def send(self, message: Asked) -> None:
        if isinstance(message, Commit):
            self._committing = message.epoch
        if isinstance(message, Step | Commit):
            if self._num_unanswered_steps == 0:
                self._num_step_beats = 0
            self._num_unanswered_steps += 1
        self._write(message)

    def take_answers(self) -> list[Answered]:
        """Answers since the last call, in order. Raises `ShardDied` once all of a dead shard's are taken."""
        answers, self._answers = self._answers, []
        if self._death is not None and not answers:
            raise self._death
        if self._death is not None:
            self._wake()  # so that the next call raises: answers before the death are valid
        return answers

    async def close(self) -> None:
        """Close the connection, whereupon the shard ends itself."""
        self._die(ShardDied("The connection was closed."))
        if self._heart is not None:
            await tasks.cancel(self._heart)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)  # uvloop's transport is no subclass

    def data_received(self, data: bytes) -> None:
        is_first = self.last_heard is None
        self.last_heard = self._loop.time()
        self._num_silent_beats = 0
        try:
            for message in self._frames.feed(data):
                self._take(message)
        except ValueError as error:
            if is_first:
                speaks = "HTTP" if data.startswith(b"HTTP/") else "no shard's language"
                self._die(ShardDied(f"What answers is no shard: it speaks {speaks}.", permanent=True))
            self._die(ShardDied(f"The shard sent what is no message: {error}."))

    def connection_lost(self, exc: Exception | None) -> None:
        self._die(ShardVanished("The shard process ended or closed its connection."))

    def _take(self, message: ToRouter) -> None:
        match message:
            case StepOutput() | Prepared() | Committed() | SwapFailed():
                self._note_answer(message)
                self._answers.append(message)
                self._wake()
            case Ready():
                if not self._ready.done():
                    self._ready.set_result(message)
            case Failed(reason, permanent):
                self._die(ShardDied(reason, permanent))
            case Pong():
                pass

    def _note_answer(self, message: Answered) -> None:
        is_commit = isinstance(message, Committed | SwapFailed) and message.epoch == self._committing
        if is_commit:
            self._committing = None
        if is_commit or isinstance(message, StepOutput):
            self._num_unanswered_steps -= 1
            self._num_step_beats = 0

    async def _beat(self) -> None:
        """Ping at a fixed rate, and give the shard up when it has kept silent for too long."""
        interval_s = self._patience.heartbeat_ms / 1000 / _BEATS_PER_TIMEOUT
        number = 0
        while self._death is None:
            number += 1
            self._write(Ping(number))
            await asyncio.sleep(interval_s)
            self._num_silent_beats += 1
            self._num_step_beats += 1
            self._judge(interval_s * 1000)

    def _judge(self, interval_ms: float) -> None:
        silent_ms = self._num_silent_beats * interval_ms
        allowed_ms = self._patience.heartbeat_ms
        if not self._ready.done():
            allowed_ms = max(allowed_ms, _LOADING_TIMEOUT_MS)
        if silent_ms >= allowed_ms:
            doubt = " It has never said anything: is it one?" if self.last_heard is None else ""
            self._die(ShardDied(f"The shard has not answered for {silent_ms / 1000:.1f} s.{doubt}"))
        elif self._num_unanswered_steps and self._num_step_beats * interval_ms >= self._patience.step_ms:
            self._die(ShardDied(f"A step has taken longer than {self._patience.step_ms / 1000:.1f} s."))

    def _die(self, death: ShardDied) -> None:
        if self._death is not None:
            return
        self._death = death
        if not self._ready.done():
            self._ready.set_exception(death)
            self._ready.exception()  # marks the exception as retrieved
        if self.transport is not None:
            self.transport.abort()
        self._wake()

    def _write(self, message: ToShard) -> None:
        if self.transport is not None and self._death is None:
            self.transport.write(frame(message))
