"""Traces of real arrivals: Azure LLM inference and BurstGPT as CSV, Mooncake as JSONL.

Keeps what these formats share: arrival time, input and output tokens; for Mooncake also the blocks of 512
tokens that prompts share.
"""

import csv
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import msgspec

from loadgen.cli.units import BadQuantity

BLOCK_TOKENS = 512  # of Mooncake's hash ids


class TraceRow(msgspec.Struct, frozen=True):
    """One arrival, in seconds since the trace's first."""

    at_s: float
    input_tokens: int
    output_tokens: int
    block_ids: tuple[int, ...] = ()


class _Mooncake(msgspec.Struct):
    timestamp: float  # ms
    input_length: int
    output_length: int
    hash_ids: tuple[int, ...] = ()


def read_trace(path: Path) -> list[TraceRow]:
    """Rows in order of time, the first at 0. Failed requests (no output) are left out.

    Raises OSError, and `BadQuantity` with a sentence that names the line.
    """
    with path.open(encoding="utf-8-sig", newline="") as file:
        is_json = file.read(1) == "{"
    rows = _read_jsonl(path) if is_json else _read_csv(path)
    rows = sorted((row for row in rows if row.output_tokens > 0), key=lambda row: row.at_s)
    if not rows:
        raise BadQuantity(f"{path} holds no arrival")
    first = rows[0].at_s
    return [msgspec.structs.replace(row, at_s=row.at_s - first) for row in rows]


def _read_jsonl(path: Path) -> list[TraceRow]:
    rows = []
    for number, line in enumerate(path.read_bytes().splitlines(), start=1):
        if not line.strip():
            continue
        try:
            row = msgspec.json.decode(line, type=_Mooncake)
        except msgspec.DecodeError as error:
            raise BadQuantity(f"{path}, line {number}: {error}") from None
        rows.append(TraceRow(row.timestamp / 1e3, row.input_length, row.output_length, row.hash_ids))
    return rows


def _read_csv(path: Path) -> list[TraceRow]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file)
        columns = _columns(path, reader.fieldnames or [])
        rows = []
        for number, row in enumerate(reader, start=2):
            try:
                at, tokens_in, tokens_out = (row[name] for name in columns)
                rows.append(TraceRow(_time(at), int(tokens_in), int(tokens_out)))
            except (ValueError, TypeError) as error:
                raise BadQuantity(f"{path}, line {number}: {error}") from None
    return rows


def _columns(path: Path, names: Sequence[str]) -> tuple[str, str, str]:
    """The columns of time, input and output tokens in either CSV format."""
    for columns in (
        ("TIMESTAMP", "ContextTokens", "GeneratedTokens"),
        ("Timestamp", "Request tokens", "Response tokens"),
    ):
        if set(columns) <= set(names):
            return columns
    raise BadQuantity(
        f"{path} is neither an Azure LLM trace, nor BurstGPT, nor Mooncake (columns: {', '.join(names)})"
    )


def _time(text: str) -> float:
    """Parse seconds, or a date with up to seven fractional digits."""
    try:
        return float(text)
    except ValueError:
        whole, dot, rest = text.partition(".")
        digits = rest[: len(rest) - len(rest.lstrip("0123456789"))]
        zone = rest[len(digits) :]
        at = datetime.fromisoformat(whole + zone)
        at = at if at.tzinfo else at.replace(tzinfo=UTC)
        return at.timestamp() + float(f"0.{digits}" if dot else 0)
