"""Agreement of systems with full depth: a sample of answers, scored by `helios score`."""

import asyncio
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from loadgen.client.records import Outcome, Record
from loadgen.client.server_info import Unusable

MAX_ANSWERS = 48  # of each system
SCORING_S = 7200.0


class Quality(msgspec.Struct, frozen=True):
    """Quality of a system's answers, with a 95% interval. Perplexity is under full depth."""

    agreement: float
    low: float
    high: float
    perplexity: float
    num_answers: int


class _Share(msgspec.Struct):
    agreement: float
    low: float
    high: float


class _Report(msgspec.Struct):
    sequences: int
    overall: _Share
    perplexity: float


class _Result(msgspec.Struct):
    answers: _Report


async def quality_of(records: Sequence[Record], model: str, file: Path) -> Quality:
    """Score an even sample of complete answers. Raises `Unusable`."""
    _write(file, records)
    command = [sys.executable, "-m", "helios", "score", str(file), "--model-id", model]
    process = await asyncio.create_subprocess_exec(
        *command, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    try:
        async with asyncio.timeout(SCORING_S):
            said, problem = await process.communicate()
    except TimeoutError:
        raise Unusable(f"answers were not scored in {SCORING_S / 3600:.0f} hours") from None
    finally:
        if process.returncode is None:
            process.kill()
    if process.returncode != 0:
        raise Unusable(f"answers could not be scored: {problem.decode(errors='replace').strip()[-300:]}")
    found = msgspec.json.decode(said.strip().splitlines()[-1], type=_Result).answers
    overall = found.overall
    return Quality(overall.agreement, overall.low, overall.high, found.perplexity, found.sequences)


def _write(file: Path, records: Sequence[Record]) -> None:
    whole = [record for record in records if record.outcome is Outcome.OK and record.token_ids]
    every = max(1, -(-len(whole) // MAX_ANSWERS))
    file.write_bytes(b"".join(msgspec.json.encode(_line(record)) + b"\n" for record in whole[::every]))


def _line(record: Record) -> dict[str, Any]:
    """A line for `helios score`, with token ids, since text might be tokenized differently."""
    return {
        "prompt": record.prompt,
        "token_ids": record.token_ids.tolist(),
        "exit_layers": record.exit_layers.tolist(),
    }
