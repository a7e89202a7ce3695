"""`helios bench engine`: the engine alone, no HTTP; decode steps beside their own matrix products.

Steps and products are timed in turns in one run, so that a noisy machine disturbs both alike; medians are
reported. Where a step's time goes is measured in steps of its own, since measuring costs time.
"""

import argparse
import functools
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import msgspec
import torch
from rich.console import Console
from rich.table import Table

from shard.bench.agenda import Agenda, Heard, unheard
from shard.bench.exits import read_distribution, run_modes, table_of
from shard.bench.limit import copied_bytes_per_ms, limit_of
from shard.bench.lockstep import Lockstep
from shard.bench.prefix import run_overheads
from shard.bench.prefix import table_of as prefix_table_of
from shard.cli import add_cache_flag, add_device_flags, add_kv_cache_flags, add_quantize_flag, positives
from shard.engine.sampler import Sampler
from shard.engine.step_inputs import BatchMaker
from shard.fetch.atomic_folder import make_once
from shard.fetch.resolve import resolve
from shard.messages import Mode, ShardConfig
from shard.models.model_folder import ModelUnusable, has_weights
from shard.models.random_weights import PREFIX, write_random_model
from shard.runner import ModelRunner
from shard.stopwatch import Stopwatch, measured_ms, synchronizer


class Point(msgspec.Struct, frozen=True):
    """Decoding at one batch size and context length; times are medians in milliseconds."""

    batch_size: int
    context: int
    step_ms: float
    linears_ms: float
    ratio: float  # step / products
    tokens_per_s: float
    prefill_tokens_per_s: float
    shares: dict[str, float]  # of a profiled step, by kind of operation
    limit_ms: float  # lower bound by memory bandwidth
    of_limit: float  # limit / step


def measure(runner: ModelRunner, batch_size: int, context: int, num_steps: int, bytes_per_ms: float) -> Point:
    """Prefill `batch_size` sequences of `context` random tokens, then time decode steps."""
    bench = _Decoding(runner, batch_size, context)
    try:
        prefill_s = bench.prefill()
        for _ in range(2):
            bench.step()
            bench.linears()
        steps, linears = [], []
        for _ in range(num_steps):
            steps.append(bench.step())
            linears.append(bench.linears())
        shares = bench.shares(max(3, num_steps // 4))
    finally:
        bench.end()
    step_ms, linears_ms = statistics.median(steps), statistics.median(linears)
    limit_ms = limit_of(runner, batch_size, context + num_steps / 2, bytes_per_ms).step_ms
    return Point(
        batch_size,
        context,
        round(step_ms, 3),
        round(linears_ms, 3),
        round(step_ms / linears_ms, 3),
        round(batch_size / step_ms * 1000, 1),
        round(batch_size * context / prefill_s, 1),
        shares,
        round(limit_ms, 3),
        round(limit_ms / step_ms, 3),
    )


class _Decoding:
    """A batch decoded step by step."""

    def __init__(self, runner: ModelRunner, batch_size: int, context: int):
        self._runner = runner
        self._engine = Lockstep(runner, batch_size, context)
        decoder = runner.decoder
        like = decoder.embedding
        widths = {linear.shape[1] for linear in decoder.linears}
        self._inputs = {
            width: runner.ops.widened(torch.randn(batch_size, width).to(like)) for width in widths
        }
        self._synchronize = synchronizer(like.device)

    def prefill(self) -> float:
        """Prefill all prompts; returns seconds."""
        started = time.perf_counter()
        self._engine.prefill()
        return time.perf_counter() - started

    def step(self) -> float:
        """Decode one token of every sequence; returns milliseconds."""
        started = time.perf_counter()
        self._engine.step()
        return (time.perf_counter() - started) * 1000

    @torch.inference_mode()
    def linears(self) -> float:
        """Run the same step's matrix products alone; returns milliseconds."""

        def run() -> None:
            for linear in self._runner.decoder.linears:
                linear(self._inputs[linear.shape[1]])

        return measured_ms(run, self._synchronize)

    def shares(self, num_steps: int) -> dict[str, float]:
        """Shares of a step's time by kind of operation."""
        ops, linear = type(self._runner.ops), type(self._runner.decoder.head)
        watched: list[tuple[type, str, str]] = [
            (linear, "__call__", "products"),
            (linear, "add", "products"),
            (ops, "attend", "attention"),
            (ops, "rope_write", "rope + KV write"),
            (ops, "rms_norm", "norms"),
            (ops, "silu_mul", "activation"),
            (Sampler, "choose", "sampling"),
            (BatchMaker, "__call__", "batch tensors"),
        ]
        watch = Stopwatch(self._runner.decoder.embedding.device)
        with watch.watching(watched):
            total_ms = sum(self.step() for _ in range(num_steps))
        shares = {
            kind: round(ms / total_ms, 4) for kind, ms in sorted(watch.ms.items(), key=lambda item: -item[1])
        }
        return shares | {"rest": round(1 - sum(shares.values()), 4)}

    def end(self) -> None:
        """Free the blocks."""
        self._engine.end()


def main(arguments: list[str] | None = None, heard: Heard = unheard) -> int:
    """Print a table, then one JSON line; report points to `heard` as they come."""
    options = _parser().parse_args(arguments)
    if options.exit_modes:
        return _exit_modes(options, heard)
    if options.prefix_cache:
        return _prefix_cache(options, heard)
    try:
        runner = ModelRunner(_config(options))
    except (ModelUnusable, ValueError, OSError, MemoryError) as error:
        print(f"helios bench engine: {error}", file=sys.stderr)
        return 1
    console, agenda = Console(stderr=True), Agenda(options.seconds, heard)
    bytes_per_ms = copied_bytes_per_ms(runner.decoder.embedding.device)
    points: list[Point] = []
    for context in options.contexts:
        for batch_size in options.batch_sizes:
            name = f"batch {batch_size}, context {context}"
            with console.status(name):
                point = functools.partial(measure, runner, batch_size, context, options.steps, bytes_per_ms)
                points += agenda.run(name, point)
    console.print(_table(points))
    ready = runner.ready()
    about = {
        "model": options.model_id,
        "dtype": ready.dtype,
        "compute_dtype": ready.compute_dtype,
        "kv_dtype": ready.kv_dtype,
        "device": ready.device,
        "ops": runner.ops.name,
        "gigabytes_per_s": round(bytes_per_ms / 1e6, 1),
    }
    return agenda.end({"bench": "engine", **about, "points": msgspec.to_builtins(points)})


def _exit_modes(options: argparse.Namespace, heard: Heard) -> int:
    """Run the benchmark of exit modes against full depth."""
    if options.replay_exits is None:
        print("helios bench engine: --exit-modes needs --replay-exits FILE", file=sys.stderr)
        return 2
    try:
        replay, agenda = read_distribution(options.replay_exits), Agenda(options.seconds, heard)
        points = run_modes(options, functools.partial(_config, options), replay, agenda)
    except (ModelUnusable, ValueError, OSError, MemoryError) as error:
        print(f"helios bench engine: {error}", file=sys.stderr)
        return 1
    Console(stderr=True).print(table_of(points))
    about = {"model": options.model_id, "dtype": options.dtype, "device": options.device}
    replayed = {"exits": "replayed", "distribution": replay.shares, "source": replay.source}
    return agenda.end({"bench": "exits", **about, **replayed, "points": msgspec.to_builtins(points)})


def _prefix_cache(options: argparse.Namespace, heard: Heard) -> int:
    """Measure what the prefix cache costs prompts that do not repeat."""
    agenda = Agenda(options.seconds, heard)
    try:
        found = run_overheads(options.batch_sizes, options.steps, functools.partial(_config, options), agenda)
    except (ModelUnusable, ValueError, OSError, MemoryError) as error:
        print(f"helios bench engine: {error}", file=sys.stderr)
        return 1
    Console(stderr=True).print(prefix_table_of(found))
    about = {"model": options.model_id, "dtype": options.dtype, "device": options.device}
    return agenda.end({"bench": "prefix cache", **about, "points": msgspec.to_builtins(found)})


def folder_of(model_id: str, cache: Path) -> Path:
    """The model's folder; for random:SHAPE one without a tokenizer, so that nothing is fetched."""
    if not model_id.startswith(PREFIX):
        return resolve(model_id, None, cache)
    place = cache / "shapes" / model_id.replace(":", "-")
    return make_once(place, has_weights, functools.partial(write_random_model, model_id))


def _config(options: argparse.Namespace, **changes: Any) -> ShardConfig:
    folder = folder_of(options.model_id, options.cache_dir)
    fields: dict[str, Any] = {
        "device": options.device,
        "dtype": options.dtype,
        "quantize": options.quantize,
        "block_size": options.block_size,
        "num_layers": options.num_layers,
        "kv_cache_dtype": options.kv_cache_dtype,
        "kv_cache_bytes": options.kv_cache_bytes,
        "max_batch_size": max(options.batch_sizes),
        "num_threads": options.num_threads,
        "cache_dir": str(options.cache_dir),
    }
    return ShardConfig(model=str(folder), **(fields | changes))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="helios bench engine", description=__doc__.split("\n\n")[0])
    add = parser.add_argument
    add("--model-id", default="embedded", help="as for `helios serve`, or random:SHAPE [the embedded model]")
    add("--batch-sizes", type=positives, default="1,8,32,64", help="sequences in a step [%(default)s]")
    add("--contexts", type=positives, default="256", help="tokens of context [%(default)s]")
    add("--seconds", type=float, help="begin no further point after this long")
    add("--steps", type=int, default=30, help="timed steps for each point, or rounds [%(default)s]")
    add("--num-layers", type=int, help="load only the first this many")
    add("--block-size", type=int, help="tokens in a KV block [16, on a GPU 256]")
    add("--exit-modes", type=_modes, help="compare these modes of early exit with full depth, by commas")
    add(
        "--prefix-cache",
        action="store_true",
        help="compare with and without, where nothing repeats",
    )
    add("--replay-exits", type=Path, help="file with the distribution of exit layers, for --exit-modes")
    add("--kv-fill", default="recompute", choices=["recompute", "project"], help="[%(default)s]")
    add("--no-exit-fallback", action="store_true", help="leave early also where it does not pay")
    add_device_flags(parser)
    add_quantize_flag(parser)
    add_kv_cache_flags(parser, 4 << 30)
    add_cache_flag(parser)
    return parser


def _modes(text: str) -> list[Mode]:
    return [Mode(name) for name in text.split(",")]


def _table(points: list[Point]) -> Table:
    table = Table(
        *("batch", "context", "step ms", "products ms", "ratio", "limit ms", "of limit"),
        *("tokens/s", "prefill tokens/s", "time by kind"),
    )
    for point in points:
        kinds = ", ".join(f"{kind} {share:.0%}" for kind, share in point.shares.items() if share >= 0.01)
        numbers = (
            point.batch_size,
            point.context,
            point.step_ms,
            point.linears_ms,
            point.ratio,
            point.limit_ms,
            f"{point.of_limit:.0%}",
            point.tokens_per_s,
            point.prefill_tokens_per_s,
        )
        table.add_row(*map(str, numbers), kinds)
    return table


if __name__ == "__main__":
    sys.exit(main())
