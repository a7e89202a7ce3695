"""Reads the windows of all routers of a deployment, from Redis."""

import asyncio
import contextlib

import msgspec

from telemetry import keys
from telemetry.link import Link
from telemetry.rollup import CandidateSum, Resolution, decode_between
from telemetry.window import Record

_LONGEST_FLUSH_S = 10.0  # from a window's beginning to the id of its entry, but for a router that hangs

_decode_records = msgspec.msgpack.Decoder(list[Record]).decode


class PastWindows:
    """Windows in Redis. Decoding may take long and must not delay tokens, so it runs on a thread."""

    def __init__(self, link: Link, deployment: str):
        self._link = link
        self._deployment = deployment

    async def since(self, since: float) -> list[Record] | None:
        """Records that were handed over at this Unix time or later; None while Redis is away."""
        entries = await self._entries(since, "+")
        return None if entries is None else await asyncio.to_thread(decode_all, entries)

    async def between(self, since: float, until: float) -> list[Record] | None:
        """Records of windows that began in [since, until), Unix time; None while Redis is away."""
        entries = await self._entries(since, f"{int((until + _LONGEST_FLUSH_S) * 1000)}")
        return None if entries is None else await asyncio.to_thread(begun_between, entries, since, until)

    async def sums(self, resolution: Resolution, since: float, until: float) -> list[CandidateSum] | None:
        """Sums of all routers' steps that began in [since, until); None while Redis is away."""
        names = [
            keys.rollup(self._deployment, resolution.step_s, number)
            for number in resolution.hashes(since, until)
        ]
        found = await self._link.ask(lambda pipe: [pipe.hgetall(name) for name in names])
        return None if found is None else await asyncio.to_thread(decode_between, found, since, until)

    async def _entries(self, since: float, last_id: str) -> list[bytes] | None:
        routers = await self._link.ask(
            lambda pipe: pipe.zrangebyscore(keys.routers(self._deployment), since, "+inf")
        )
        if routers is None:
            return None
        streams = [keys.windows(self._deployment, name.decode(errors="replace")) for name in routers[0]]
        answers = await self._link.ask(
            lambda pipe: [pipe.xrange(stream, f"{int(since * 1000)}-0", last_id) for stream in streams]
        )
        return None if answers is None else [data_of(fields) for stream in answers for _, fields in stream]


def data_of(fields: dict[bytes, bytes]) -> bytes:
    """The data of a stream's entry; empty if another program wrote it."""
    return fields.get(b"d", b"")


def begun_between(entries: list[bytes], since: float, until: float) -> list[Record]:
    return [record for record in decode_all(entries) if since <= record.window.start < until]


def decode_all(entries: list[bytes]) -> list[Record]:
    """Decode records, without those in another version's format."""
    records: list[Record] = []
    for entry in entries:
        with contextlib.suppress(msgspec.MsgspecError):
            records += _decode_records(entry)
    return records
