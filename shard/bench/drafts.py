"""`helios bench drafts`: `speculative` against full depth, by set of prompts and number of streams.

Both answer the same prompts in one process, step by step in turns, so that a noisy machine disturbs both
alike. What is compared are output tokens per second of steps in which all streams decode; the interval is
over groups of prompts.
"""

import argparse
import json
import math
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import msgspec
from rich.console import Console
from rich.table import Table
from scipy import stats

from shard.cli import add_cache_flag, add_device_flags, positives
from shard.fetch.resolve import resolve
from shard.messages import DRAFT_PLACES, DrafterKind, DraftSharing, Mode, NewSequence, Sampling, ShardConfig
from shard.models.model_folder import ModelUnusable
from shard.offline import OfflineEngine
from shard.runner import ModelRunner

OWN_PROMPTS = Path(__file__).with_name("draft_prompts.jsonl")
QUOTING = {
    "summarization",
    "rag",
    "extraction",
}  # of Spec-Bench: answers repeat their prompts


class Line(msgspec.Struct):
    """One prompt of a file: ours, or Spec-Bench's (Xia et al. 2024), of which the first turn is used."""

    set: str = ""
    category: str = ""
    prompt: str = ""
    turns: list[str] = []

    @property
    def name(self) -> str:
        if self.set or not self.category:
            return self.set or "prompts"
        return "quote" if self.category in QUOTING else "code" if self.category == "coding" else "chat"


class Point(msgspec.Struct, frozen=True):
    """One set at one number of streams. `accepted` are shares by place in a draft; None: too few drafted."""

    prompts: str
    streams: int
    full_tokens_per_s: float
    tokens_per_s: float
    speedup: float
    low: float  # of the 95% interval
    high: float
    tokens_per_step: float
    accepted: dict[str, list[float | None]]


class Side:
    """One mode's engine, and what it has done."""

    def __init__(self, runner: ModelRunner, streams: int):
        self._engine = OfflineEngine(runner, streams)
        self._deciding: set[int] = set()  # sequences without a token
        self.made = 0  # tokens of this turn
        self.tokens: list[int] = []  # by turn, of the steps in which all decode
        self.ms: list[float] = []
        self.num_rows = 0  # of sequences in these steps
        self.drafted: dict[str, list[int]] = defaultdict(lambda: [0] * DRAFT_PLACES)
        self.accepted: dict[str, list[int]] = defaultdict(lambda: [0] * DRAFT_PLACES)

    @property
    def is_done(self) -> bool:
        return not self._engine.has_unfinished

    @property
    def rate(self) -> float:
        """Tokens per second of all turns but the first, which warms up."""
        return sum(self.tokens[1:]) / sum(self.ms[1:]) * 1000

    def begin(self, sequences: list[NewSequence]) -> None:
        """A turn with these sequences."""
        self._engine.take_finished()
        for sequence in sequences:
            self._engine.add(sequence)
        self._deciding = {sequence.id for sequence in sequences}
        self.made = 0
        self.tokens.append(0)
        self.ms.append(0.0)

    def step(self) -> None:
        """One step, timed if all decode."""
        all_decode = not self._deciding
        started = time.perf_counter()
        output = self._engine.step()
        ms = (time.perf_counter() - started) * 1000
        num_tokens = sum(len(made.tokens) for made in output.outputs)
        self.made += num_tokens
        if all_decode:
            self.ms[-1] += ms
            self.tokens[-1] += num_tokens
            self.num_rows += len(output.outputs)
        self._deciding -= {made.id for made in output.outputs if made.tokens}
        for kind, count in (output.exits.drafts if output.exits else {}).items():
            for place in range(DRAFT_PLACES):
                self.drafted[kind.value][place] += count.drafted[place]
                self.accepted[kind.value][place] += count.accepted[place]


def measure(
    full: Side, drafting: Side, name: str, groups: Iterable[list[NewSequence]], streams: int
) -> Point:
    """Let both answer groups of prompts. The one that is behind makes the next step."""
    for group in groups:
        for side in (full, drafting):
            side.begin(group)
        while not (full.is_done and drafting.is_done):
            behind = (
                full if drafting.is_done or (full.made <= drafting.made and not full.is_done) else drafting
            )
            behind.step()
    ratios = [
        math.log(made / ms * full_ms / full_made)
        for made, ms, full_made, full_ms in zip(
            drafting.tokens[1:], drafting.ms[1:], full.tokens[1:], full.ms[1:], strict=True
        )
    ]
    mean = statistics.fmean(ratios)
    spread = stats.t.ppf(0.975, len(ratios) - 1) * stats.sem(ratios) if len(ratios) > 1 else math.inf
    return Point(
        name,
        streams,
        round(full.rate, 1),
        round(drafting.rate, 1),
        round(math.exp(mean), 3),
        round(math.exp(mean - spread), 3),
        round(math.exp(mean + spread), 3),
        round(sum(drafting.tokens) / max(1, drafting.num_rows), 2),
        {kind: _shares(drafting.drafted[kind], drafting.accepted[kind]) for kind in drafting.drafted},
    )


def _groups(
    prompts: list[list[int]], streams: int, options: argparse.Namespace
) -> Iterator[list[NewSequence]]:
    """As many prompts as streams for each turn, from the first on again when all were given."""
    given = cycle(prompts)
    sampling = Sampling(temperature=options.temperature, seed=7)
    for _ in range(options.turns + 1):
        yield [
            NewSequence(i, 0, ids, len(ids), options.tokens, ignore_eos=True, sampling=sampling)
            for i, ids in enumerate(islice(given, streams))
        ]


def _shares(drafted: list[int], accepted: list[int]) -> list[float | None]:
    """Of the guesses at each of the first three places those that were right, where all before them were."""
    tried = [drafted[0], *accepted]
    shares = zip(accepted[:3], [min(d, t) for d, t in zip(drafted, tried, strict=False)], strict=False)
    return [round(right / of, 3) if of >= 10 else None for right, of in shares]


def read_prompts(file: Path) -> dict[str, list[str]]:
    """Prompts by set. Raises `ValueError` or `OSError` with one sentence."""
    sets: dict[str, list[str]] = defaultdict(list)
    for number, text in enumerate(file.read_text(encoding="utf-8").splitlines(), 1):
        try:
            line = msgspec.json.decode(text, type=Line)
        except msgspec.DecodeError as error:
            raise ValueError(f"{file}, line {number}: {error}") from None
        sets[line.name].append(line.prompt or next(iter(line.turns), ""))
    return sets


def _encoded(folder: Path, prompts: list[str], longest: int) -> list[list[int]]:
    """Token ids in the model's chat template, of prompts that leave room for an answer."""
    from transformers import AutoTokenizer  # seconds to import

    tokenizer: Any = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    made = []
    for prompt in prompts:
        text = prompt
        if tokenizer.chat_template is not None:
            turn = [{"role": "user", "content": prompt}]
            text = tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True)
        made.append(tokenizer.encode(text, add_special_tokens=tokenizer.chat_template is None))
    return [ids for ids in made if len(ids) <= longest]


def main(arguments: list[str] | None = None) -> int:
    """Print a table, then one JSON line."""
    options = _parser().parse_args(arguments)
    try:
        points = _run(options)
    except (ModelUnusable, ValueError, OSError, MemoryError) as error:
        print(f"helios bench drafts: {error}", file=sys.stderr)
        return 1
    table = Table(
        "prompts", "streams", "full tok/s", "tok/s", "ratio", "95%", "tokens/step", "accepted 1st, 2nd, 3rd"
    )
    for point in points:
        interval = f"{point.low:.2f} to {point.high:.2f}"
        numbers = (
            point.full_tokens_per_s,
            point.tokens_per_s,
            point.speedup,
            interval,
            point.tokens_per_step,
        )
        table.add_row(point.prompts, str(point.streams), *map(str, numbers), str(point.accepted))
    Console(stderr=True).print(table)
    about = {
        "bench": "drafts",
        "model": options.model_id,
        "dtype": options.dtype,
        "drafters": options.drafters,
    }
    print(json.dumps(about | {"points": msgspec.to_builtins(points)}), flush=True)
    return 0


def _run(options: argparse.Namespace) -> list[Point]:
    folder = resolve(options.model_id, None, options.cache_dir)
    sets = read_prompts(options.prompts)
    config = ShardConfig(
        model=str(folder),
        device=options.device,
        dtype=options.dtype,
        num_threads=options.num_threads,
        kv_cache_bytes=1 << 30,
        max_batch_size=max(options.streams),
        cache_dir=str(options.cache_dir),
    )
    full = ModelRunner(config)
    speculative = msgspec.structs.replace(
        config,
        exit_mode=Mode.SPECULATIVE,
        drafters=[DrafterKind(name) for name in options.drafters.split(",")],
        draft_sharing=DraftSharing(options.draft_sharing),
        exits=options.exits,
        draft_head=options.drafter_head,
    )
    drafting = ModelRunner(speculative, decoder=full.decoder)
    points = []
    for name in options.sets or sorted(sets):
        prompts = _encoded(folder, sets[name], options.max_prompt_tokens)
        for streams in options.streams:
            sides = Side(full, streams), Side(drafting, streams)
            point = measure(*sides, name, _groups(prompts, streams, options), streams)
            print(msgspec.json.encode(point).decode(), file=sys.stderr, flush=True)
            points.append(point)
    return points


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="helios bench drafts", description=__doc__.split("\n\n")[0])
    add = parser.add_argument
    add("--model-id", default="embedded", help="as for `helios serve` [the embedded model]")
    add("--prompts", type=Path, default=OWN_PROMPTS, help="JSON Lines with prompt or turns, set or category")
    add("--sets", type=lambda text: text.split(","), help="of the prompts, by commas [all]")
    add("--streams", type=positives, default="1,4,8,32", help="[%(default)s]")
    add("--turns", type=int, default=8, help="timed groups of prompts, which come again [%(default)s]")
    add("--tokens", type=int, default=128, help="of each answer [%(default)s]")
    add("--max-prompt-tokens", type=int, default=1024, help="longer prompts are left out [%(default)s]")
    add("--temperature", type=float, default=0.0, help="[%(default)s]")
    add("--drafters", default="text", help="by commas [%(default)s]")
    add(
        "--draft-sharing", default="request", choices=list(DraftSharing), help="[%(default)s: prompts repeat]"
    )
    add("--drafter-head", help="folder of a trained head, for the drafter head [beside exits, or shipped]")
    add("--exits", help="folder of exits, for the drafter exit")
    add_device_flags(parser)
    add_cache_flag(parser)
    return parser


if __name__ == "__main__":
    sys.exit(main())
