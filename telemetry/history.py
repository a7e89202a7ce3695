"""The Performance History Table (HELIOS, section 4): measurements of each candidate at each depth.

A row has few numbers, so that a whole table stays around one kilobyte. Kept in memory and in Redis, where the
routers of a deployment share it: of two rows with one key, the one measured last counts.
"""

import math
from collections.abc import Iterable, Mapping
from typing import Any

import msgspec

from telemetry.cost import CostFit

_NUM_DIGITS = 5  # significant digits of a measurement

Key = tuple[str, int, str]  # candidate, depth, class of most prompts


class Interval(msgspec.Struct, frozen=True, array_like=True):
    """A share with its 95% interval, and the number of answers behind it."""

    value: float
    low: float
    high: float
    num_sequences: int


class Row(msgspec.Struct, frozen=True, kw_only=True, array_like=True):
    """Measurements of one (candidate, depth) under one class of traffic. None: not measured."""

    candidate: str
    depth: int
    measured_at: int  # Unix time in seconds
    num_requests: int = 0
    num_tokens: int = 0  # tokens generated
    throughput: float | None = None  # tokens per second of one shard
    cost: CostFit | None = None
    exits: dict[int, int] = {}  # tokens by the layer they left at
    breaches: int = 0  # tokens that left under their threshold
    agreement: Interval | None = None  # with its own full depth
    perplexity: float | None = None  # of its answers, under its own full depth
    bits_per_byte: float | None = None  # the same, comparable between vocabularies
    joules_per_token: float | None = None
    swap_ms: float | None = None  # to change to it from another candidate
    deepen_ms: float | None = None  # to change to it from another depth of the same
    version: str = ""  # of the measured model: figures of another version do not apply
    prompts: str = ""  # class of most prompts; "": mixed
    ttft_p95_ms: float | None = None
    itl_p95_ms: float | None = None

    @property
    def key(self) -> Key:
        return self.candidate, self.depth, self.prompts

    @property
    def breach_rate(self) -> float:
        return self.breaches / max(1, self.num_tokens)


def field_of(key: Key) -> str:
    """The row's field in Redis."""
    candidate, depth, prompts = key
    return f"{candidate}@{depth}:{prompts}"


def encode(row: Row) -> bytes:
    """JSON, with numbers rounded to `_NUM_DIGITS` digits."""
    return msgspec.json.encode(_rounded(msgspec.to_builtins(row)))


def decode(data: bytes) -> Row | None:
    """A row of Redis; None for another version's format."""
    try:
        return msgspec.json.decode(data, type=Row)
    except msgspec.MsgspecError:
        return None


def newest(rows: Iterable[Row]) -> dict[Key, Row]:
    """The row measured last for each key; all routers choose the same one."""
    found: dict[Key, Row] = {}
    for row in rows:
        known = found.get(row.key)
        if known is None or _rank(row) > _rank(known):
            found[row.key] = row
    return found


def _rank(row: Row) -> tuple[int, bytes]:
    return row.measured_at, encode(row)


class History:
    """This router's copy of the table, merged with other routers' through Redis."""

    def __init__(self) -> None:
        self._rows: dict[Key, Row] = {}
        self._in_redis: dict[Key, Row] = {}

    def put(self, row: Row) -> None:
        """Add a measurement, unless a later one is known. Within a second, the last one put counts."""
        known = self._rows.get(row.key)
        if known is None or row.measured_at > known.measured_at:
            self._rows[row.key] = _as_kept(row)
        elif row.measured_at == known.measured_at:
            later = msgspec.structs.replace(row, measured_at=known.measured_at + 1)
            self._rows[row.key] = _as_kept(later)

    def get(self, candidate: str, depth: int, prompts: str = "") -> Row | None:
        return self._rows.get((candidate, depth, prompts))

    def rows(self) -> list[Row]:
        """Rows by candidate, depth and prompts."""
        return [self._rows[key] for key in sorted(self._rows)]

    def unwritten(self) -> dict[str, bytes]:
        """Fields that Redis lacks, or has an older measurement in."""
        rows = ((key, row) for key, row in self._rows.items() if self._in_redis.get(key) != row)
        return {field_of(key): encode(row) for key, row in rows}

    def learn(self, fields: Mapping[bytes, bytes]) -> None:
        """Take over Redis' fields: rows of other routers, or none if it has lost its data."""
        found = newest(row for data in fields.values() if (row := decode(data)) is not None)
        self._rows = newest([*self._rows.values(), *found.values()])
        self._in_redis = found


def _as_kept(row: Row) -> Row:
    """The row rounded as in Redis, so that the two can be compared."""
    return msgspec.json.decode(encode(row), type=Row)


def _rounded(value: Any) -> Any:
    match value:
        case float():
            if not value or not math.isfinite(value):
                return value
            return round(value, _NUM_DIGITS - 1 - math.floor(math.log10(abs(value))))
        case list():
            return [_rounded(item) for item in value]
        case _:
            return value
