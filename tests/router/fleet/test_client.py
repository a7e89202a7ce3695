"""What a connection makes of a shard that answers, keeps silent, talks nonsense or goes."""

import asyncio
import socket
import time
from collections.abc import AsyncIterator, Callable

import pytest

from router.fleet.client import Patience, ShardClient, ShardDied
from shard.messages import (
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
    ToShard,
    frame,
)
from telemetry import tasks
from tests.router.sim_serving import TIMEOUT_S, until

HELLO = Hello(PROTOCOL_VERSION, "", 0, ShardConfig("m"))
READY = Ready("m", "v1", "sim", "float32", 30, 30, 1000, 100, 16, 50, [2], 0, 0, 0.0)
PATIENCE = Patience(heartbeat_ms=200, step_ms=300)


class Peer:
    """The shard's end. It says that it is ready, and answers pings for as long as `answers` is true."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter):
        self._reader = reader
        self.writer = writer
        self.answers = True
        self.loads = True
        self.received: list[ToShard] = []

    def say(self, *messages: object) -> None:
        self.writer.write(b"".join(bytes(frame(message)) for message in messages))

    async def run(self) -> None:
        frames: FrameReader[ToShard] = FrameReader(ToShard)
        while data := await self._reader.read(65536):
            for message in frames.feed(data):
                self.received.append(message)
                if isinstance(message, Ping) and self.answers:
                    self.say(Pong(message.number))
                if isinstance(message, Hello) and self.loads:
                    self.say(READY)


class Wire:
    def __init__(self, client: ShardClient, peer: Peer, woken: asyncio.Event):
        self.client = client
        self.peer = peer
        self.woken = woken

    async def death(self) -> str:
        """Wait until it has died, and say of what."""
        with pytest.raises(ShardDied) as died:
            async with asyncio.timeout(TIMEOUT_S):
                while True:
                    self.client.take_answers()
                    await self.woken.wait()
                    self.woken.clear()
        return died.value.reason


@pytest.fixture
async def wire() -> AsyncIterator[Wire]:
    ours, theirs = socket.socketpair()
    woken = asyncio.Event()
    make: Callable[[], ShardClient] = lambda: ShardClient(PATIENCE, woken.set)  # noqa: E731
    _, client = await asyncio.get_running_loop().create_unix_connection(make, sock=ours)
    peer = Peer(*await asyncio.open_unix_connection(sock=theirs))
    task = asyncio.create_task(peer.run())
    yield Wire(client, peer, woken)
    await client.close()
    peer.writer.close()
    await tasks.ended([task], TIMEOUT_S)


async def test_open_returns_what_the_shard_has_learned(wire: Wire) -> None:
    assert await wire.client.open(HELLO) == READY
    assert wire.peer.received[0] == HELLO


async def test_open_raises_what_the_shard_says_of_its_failure(wire: Wire) -> None:
    wire.peer.loads = False
    wire.peer.say(Failed("There is no such model.", permanent=True))
    with pytest.raises(ShardDied, match="There is no such model") as died:
        await wire.client.open(HELLO)
    assert died.value.permanent


async def test_outputs_come_in_order_and_before_the_death_that_followed_them(wire: Wire) -> None:
    await wire.client.open(HELLO)
    outputs = [StepOutput(number, [], [], 50, 0) for number in (1, 2)]
    wire.peer.say(*outputs, Failed("It broke."))
    await until(lambda: wire.woken.is_set())
    await asyncio.sleep(0.02)
    wire.woken.clear()
    assert wire.client.take_answers() == outputs
    assert wire.woken.is_set()
    assert await wire.death() == "It broke."


async def test_a_shard_that_answers_lives_on(wire: Wire) -> None:
    await wire.client.open(HELLO)
    await until(lambda: len(wire.peer.received) > 12)
    assert wire.client.take_answers() == []
    assert not wire.client.is_late


async def test_a_silent_shard_is_late_and_then_dead(wire: Wire) -> None:
    await wire.client.open(HELLO)
    wire.peer.answers = False
    await until(lambda: wire.client.is_late)
    wire.client.take_answers()
    assert "has not answered" in await wire.death()


async def test_a_step_that_takes_too_long_is_a_death_though_pings_are_answered(wire: Wire) -> None:
    await wire.client.open(HELLO)
    wire.client.send(Step(1, []))
    assert "A step has taken longer" in await wire.death()


async def test_a_stall_of_the_routers_own_loop_kills_nobody(wire: Wire) -> None:
    await wire.client.open(HELLO)
    time.sleep(0.5)  # noqa: ASYNC251 (it is the stall)
    await asyncio.sleep(0.3)
    assert wire.client.take_answers() == []


async def test_nonsense_is_a_death(wire: Wire) -> None:
    await wire.client.open(HELLO)
    wire.peer.writer.write(b"\x00\x00\x00\x01\xc1")
    assert "no message" in await wire.death()


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", "it speaks HTTP"),
        (b"-ERR unknown command\r\n", "no shard's language"),
    ],
)
async def test_a_port_of_another_kind_is_told_and_not_asked_again(
    wire: Wire, said: bytes, reason: str
) -> None:
    wire.peer.loads = wire.peer.answers = False
    wire.peer.writer.write(said)
    with pytest.raises(ShardDied, match=reason) as died:
        await wire.client.open(HELLO)
    assert died.value.permanent


async def test_who_is_cancelled_while_closing_a_connection_is_cancelled(wire: Wire) -> None:
    await wire.client.open(HELLO)
    closing = asyncio.create_task(wire.client.close())
    await asyncio.sleep(0)
    closing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await closing


async def test_a_closed_connection_is_a_death(wire: Wire) -> None:
    await wire.client.open(HELLO)
    wire.peer.writer.close()
    assert "ended" in await wire.death()
