"""Small records, runs and servers for the tests of this folder."""

from array import array
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

from loadgen.client.client import Address, Client, Patience
from loadgen.client.dialects import Ask, Dialect, Message
from loadgen.client.records import Outcome, Record
from loadgen.client.server_info import ServerInfo
from loadgen.load.run import Run
from loadgen.selftest.server import Behaviour, Server

SERVER_INFO = ServerInfo(kind="helios", dialect=Dialect.TGI, model="synthetic")
QUICK = Behaviour(ttft_ms=5, itl_ms=2)
SHORT = Patience(connect_s=2, first_token_s=0.4, stall_s=0.4, total_s=1.5)


def record(at: float = 0.0, tokens: Sequence[float] = (), **changes: Any) -> Record:
    """A finished request that was begun at `at` and got tokens at the given times."""
    settled: dict[str, Any] = {
        "number": 0,
        "intended": at,
        "begun": at,
        "sent": at,
        "ended": tokens[-1] if tokens else at,
        "token_times": array("d", tokens),
        "outcome": Outcome.OK,
        "max_tokens": len(tokens),
    }
    return Record(**settled | changes)


def run_of(records: Sequence[Record], **changes: Any) -> Run:
    """A run that began at 0 and ended with its last record."""
    ends = [record.ended or 0.0 for record in records]
    settled: dict[str, Any] = {
        "label": "test",
        "url": "http://test",
        "server_info": SERVER_INFO,
        "is_open_loop": True,
        "concurrency": None,
        "began": 0.0,
        "began_at_s": 1000.0,
        "ended": max(ends, default=0.0),
        "last_start": max((record.intended for record in records), default=0.0),
        "records": list(records),
    }
    return Run(**settled | changes)


def ask(prompt: str = "Hello there", max_tokens: int = 8) -> Ask:
    return Ask(messages=(Message("user", prompt),), text=prompt, max_tokens=max_tokens)


@asynccontextmanager
async def synthetic(behaviour: Behaviour = QUICK) -> AsyncIterator[Server]:
    """The synthetic server, in this process and on this loop."""
    server = Server(behaviour)
    await server.start()
    try:
        yield server
    finally:
        await server.stop()


@asynccontextmanager
async def client_of(server: Server, patience: Patience = SHORT) -> AsyncIterator[Client]:
    async with Client(Address("127.0.0.1", server.port), patience=patience) as client:
        yield client


async def answer(client: Client, prompt: str, max_tokens: int = 8, dialect: Dialect = Dialect.TGI) -> Record:
    """Ask once and give the record."""
    found = Record(number=0, prompt=prompt, max_tokens=max_tokens)
    await client.stream(dialect, "synthetic", ask(prompt, max_tokens), found)
    return found
