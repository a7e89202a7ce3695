"""What an overview needs of one flush of a router. Pure: `Store` writes it beside the windows that it sums.

Of a thousand shards the windows of a flush are 400 KB and take 10 ms to read; their tick is a tenth of that.
"""

from collections.abc import Iterable

import msgspec

from telemetry.rollup import CandidateSum
from telemetry.window import Record


class ShardWork(msgspec.Struct, frozen=True, array_like=True):
    """What the rates of a shard need."""

    tokens: int = 0
    joules: float = 0.0
    busy_ms: float = 0.0

    def __add__(self, other: "ShardWork") -> "ShardWork":
        return ShardWork(self.tokens + other.tokens, self.joules + other.joules, self.busy_ms + other.busy_ms)


class Tick(msgspec.Struct, frozen=True, array_like=True):
    """The records of one flush: summed up by candidate and depth, and the work of each shard."""

    models: list[CandidateSum]
    shards: dict[int, ShardWork]


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Tick).decode


def encode(records: Iterable[Record], sums: list[CandidateSum]) -> bytes:
    """The tick of these records, whose sums over shards are `sums`."""
    shards: dict[int, ShardWork] = {}
    for record in records:
        window = record.window
        work = ShardWork(window.tokens, window.joules, window.step_ms)
        known = shards.get(record.shard)
        shards[record.shard] = work if known is None else known + work
    return _encode(Tick(sums, shards))


def decode(data: bytes) -> Tick | None:
    """A tick of Redis; None for another version's format."""
    try:
        return _decode(data)
    except msgspec.MsgspecError:
        return None
