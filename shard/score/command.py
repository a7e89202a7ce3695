"""`helios score FILE`: scores earlier answers, of any origin, by the full model.

One pass at full depth over each prompt and answer gives the model's own choice at every position, drawn with
the answer's own noise, and the log-probability of the answer's token there.
"""

import argparse
import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path

import msgspec
from rich.console import Console
from rich.table import Table

from shard.cli import (
    add_cache_flag,
    add_device_flags,
    add_kv_cache_flags,
    add_quantize_flag,
    add_revision_flag,
    positive,
)
from shard.fetch.resolve import resolve
from shard.messages import ShardConfig
from shard.models.model_folder import ModelUnusable
from shard.models.text import read_tokenizer
from shard.offline import Answer, OfflineEngine
from shard.quality.agreement import Agreement, Report, Share
from shard.runner import ModelRunner
from shard.score.answers import AnswersUnusable, Bounds, read_answers

PROGRAM = "helios score"


class Result(msgspec.Struct, frozen=True):
    """The result: the last line of the output."""

    score: str  # the file
    model: str
    version: str
    dtype: str
    bits_per_byte: float
    answers: Report


def score(engine: OfflineEngine, answers: Sequence[Answer]) -> tuple[Report, float]:
    """Agreement and perplexity of answers, and the full model's bits per byte."""
    books = Agreement()
    num_bits, num_bytes = 0.0, 0
    for answer, scores in engine.score(answers):
        layers: Sequence[int | None] = answer.exit_layers or [None] * len(scores)
        agrees = [token == said.choice for token, said in zip(answer.token_ids, scores, strict=True)]
        logprobs = [said.logprob for said in scores]
        books.add(zip(layers, agrees, strict=True), logprobs)
        num_bits -= sum(logprobs) / math.log(2)
        num_bytes += answer.num_bytes
    return books.report(), num_bits / max(1, num_bytes)


def main(arguments: Sequence[str] | None = None) -> int:
    """Print a table, then one JSON line. Exit code 1 with one sentence on failure."""
    options = _parser().parse_args(arguments)
    try:
        result = _run(options)
    except (ModelUnusable, AnswersUnusable, ValueError, OSError, MemoryError) as error:
        print(f"{PROGRAM}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    Console(stderr=True).print(_table(result))
    print(json.dumps(msgspec.to_builtins(result, str_keys=True)))
    return 0


def _run(options: argparse.Namespace) -> Result:
    folder = resolve(options.model_id, options.revision, options.cache_dir)
    config = ShardConfig(
        model=str(folder),
        device=options.device,
        dtype=options.dtype,
        quantize=options.quantize,
        kv_cache_dtype=options.kv_cache_dtype,
        kv_cache_bytes=options.kv_cache_bytes,
        max_batch_size=options.batch_size,
        num_threads=options.num_threads,
    )
    runner = ModelRunner(config)
    ready = runner.ready()
    tokenizer = read_tokenizer(folder)
    answers = read_answers(options.file, tokenizer, Bounds(ready.vocab_size, ready.max_total_tokens))
    report, bits_per_byte = score(OfflineEngine(runner, options.batch_size), answers)
    return Result(str(options.file), options.model_id, ready.version, ready.dtype, bits_per_byte, report)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=PROGRAM, description=__doc__.split("\n\n")[0])
    add = parser.add_argument
    add(
        "file",
        type=Path,
        metavar="FILE",
        help="one JSON object a line: prompt, answer, exit_layers, sampling",
    )
    add("--model-id", default="embedded", help="as for `helios serve` [the embedded model]")
    add("--batch-size", type=positive, default=8, help="answers read at once [%(default)s]")
    add_revision_flag(parser)
    add_device_flags(parser)
    add_quantize_flag(parser)
    add_kv_cache_flags(parser)
    add_cache_flag(parser)
    return parser


def _table(result: Result) -> Table:
    table = Table("exit layer", "tokens", "agreement", "95% interval")
    for layer, share in result.answers.by_exit.items():
        table.add_row(str(layer), *_cells(share))
    if result.answers.overall is not None:
        table.add_row("all", *_cells(result.answers.overall))
    table.caption = (
        f"{result.answers.sequences} answers, perplexity {result.answers.perplexity:.3f}, "
        f"{result.bits_per_byte:.3f} bits per byte"
    )
    return table


def _cells(share: Share) -> tuple[str, str, str]:
    return str(share.tokens), f"{share.agreement:.4f}", f"{share.low:.4f} - {share.high:.4f}"


if __name__ == "__main__":
    sys.exit(main())
