"""`helios score FILE`: what the full model says of answers that were generated before, by whatever made them.

One pass at full depth over each prompt and answer gives the model's own choice at every position, drawn with
the answer's own noise, and the log-probability of the token that stands there.
"""

import argparse
import json
import math
import os
import sys
from collections import deque
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec
import torch
from rich.console import Console
from rich.table import Table
from tokenizers import Tokenizer

from shard.agreement import Agreement, Report, Share
from shard.answers import Answer, AnswersUnusable, Bounds, read_answers
from shard.messages import NewSequence, Score, SequenceOutput, ShardConfig, Step, Work
from shard.model_folder import ModelUnusable
from shard.resolve import resolve
from shard.runner import ModelRunner

STEP_TOKENS = 512
PROGRAM = "helios score"


class Result(msgspec.Struct, frozen=True):
    """What was found, as the last line of the output has it."""

    score: str  # the file
    model: str
    version: str
    dtype: str
    bits_per_byte: float
    answers: Report


class Scoring:
    """Answers being read by a runner, some at a time; each is yielded with its scores when it is complete."""

    def __init__(self, runner: ModelRunner, answers: Sequence[Answer], batch_size: int):
        self._runner = runner
        self._waiting = deque(answers)
        self._batch_size = batch_size
        self._reading: dict[int, Answer] = {}
        self._scores: dict[int, list[Score]] = {}
        self._attempts = dict.fromkeys((answer.number for answer in answers), 0)
        self._num_steps = 0

    def run(self) -> Iterator[tuple[Answer, list[Score]]]:
        while self._waiting or self._reading:
            new = [self._begin() for _ in range(min(len(self._waiting), self._num_places))]
            share = max(1, STEP_TOKENS // len(self._reading))
            work = [Work(number, self._attempts[number], share) for number in self._reading]
            self._num_steps += 1
            output = self._runner.run(Step(self._num_steps, work, new))
            for made in output.outputs:
                yield from self._take(made)
            for number, _ in output.preempted:
                self._waiting.appendleft(self._reading.pop(number))
                self._attempts[number] += 1

    @property
    def _num_places(self) -> int:
        return self._batch_size - len(self._reading)

    def _begin(self) -> NewSequence:
        answer = self._waiting.popleft()
        self._reading[answer.number] = answer
        self._scores[answer.number] = []
        return NewSequence(
            answer.number,
            self._attempts[answer.number],
            answer.prompt_token_ids + answer.token_ids,
            len(answer.prompt_token_ids),
            max_new_tokens=0,
            sampling=answer.sampling,
            scores=True,
        )

    def _take(self, made: SequenceOutput) -> Iterator[tuple[Answer, list[Score]]]:
        self._scores[made.id] += made.scores
        if made.finish is not None:
            yield self._reading.pop(made.id), self._scores.pop(made.id)


def score(runner: ModelRunner, answers: Sequence[Answer], batch_size: int) -> tuple[Report, float]:
    """Agreement and perplexity of answers, and the bits that the full model needs for a byte of them."""
    books = Agreement()
    num_bits, num_bytes = 0.0, 0
    for answer, scores in Scoring(runner, answers, batch_size).run():
        layers: Sequence[int | None] = answer.exit_layers or [None] * len(scores)
        agrees = [token == said.choice for token, said in zip(answer.token_ids, scores, strict=True)]
        logprobs = [said.logprob for said in scores]
        books.add(zip(layers, agrees, strict=True), logprobs)
        num_bits -= sum(logprobs) / math.log(2)
        num_bytes += answer.num_bytes
    return books.report(), num_bits / max(1, num_bytes)


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints a table, then one JSON line. Exit code 1 with one sentence when it cannot."""
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
        kv_cache_bytes=options.kv_cache_bytes,
        max_batch_size=options.batch_size,
        num_threads=options.num_threads,
    )
    runner = ModelRunner(config)
    ready = runner.ready()
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    answers = read_answers(options.file, tokenizer, Bounds(ready.vocab_size, ready.max_total_tokens))
    report, bits_per_byte = score(runner, answers, options.batch_size)
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
    add("--revision", help="branch, tag or commit of a hub id")
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="[%(default)s]")
    add("--dtype", default="bfloat16", choices=["float32", "float16", "bfloat16"], help="[%(default)s]")
    add("--batch-size", type=_positive, default=8, help="answers read at once [%(default)s]")
    add("--kv-cache-bytes", type=_positive, default=1 << 30, help="[%(default)s]")
    add("--num-threads", type=_positive, help="CPU threads [all cores]")
    add("--cache-dir", type=Path, default=_cache_dir(), help="where models are kept [%(default)s]")
    return parser


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, not {number}")
    return number


def _cache_dir() -> Path:
    return Path(os.environ.get("HELIOS_CACHE") or "~/.cache/helios").expanduser()


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
