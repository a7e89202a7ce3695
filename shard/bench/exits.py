"""`helios bench engine --exit-modes ...`: modes of early exit against full depth, in one process.

Exit layers are drawn from a distribution (exit replay), so that any shape can be measured. Modes take turns
of some steps each. Each speed-up is reported with its upper bound by the times of layers, head and fill
(bound.py).
"""

import argparse
import functools
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import torch
from rich.console import Console
from rich.table import Table

from shard.bench.agenda import Agenda
from shard.bench.bound import Curve, Stream, Times, bound_of
from shard.bench.limit import copied_bytes_per_ms, limit_of
from shard.bench.lockstep import Lockstep
from shard.engine.kv_cache import free_bytes, is_elastic
from shard.engine.sequence import Sequence
from shard.engine.sequence_table import Chunk
from shard.exits import fallback
from shard.exits.deferral import MAX_WAIT_STEPS
from shard.exits.fallback import NUM_WINDOWS, WINDOW_STEPS
from shard.exits.replay import ReplayFile
from shard.exits.segments import ActiveRows, CatchUp, Row, SegmentedDecoder
from shard.messages import Fill, Mode, NewSequence, ShardConfig
from shard.runner import ModelRunner
from shard.stopwatch import measured_ms, synchronizer

TRIAL_STEPS = 2 * (fallback.WARMUP_STEPS + WINDOW_STEPS) + MAX_WAIT_STEPS  # of the fallback, at most
WARMUP_TOKENS = NUM_WINDOWS * TRIAL_STEPS + 1  # per row; the fallback has chosen by then
ROUND_TOKENS = 8  # per row and turn of a mode
FILLED_TOKENS = 3  # pending tokens per row when the fill is timed
MEASURED_TIMES = 5  # repetitions for each part
BASE_KV_BYTES = 1 << 29  # KV cache for measuring parts


class ModePoint(msgspec.Struct, frozen=True):
    """One mode at one batch size."""

    mode: str
    batch_size: int
    tokens_per_s: float
    step_ms: float
    speedup: float  # over full depth in the same run
    bound: float | None  # upper bound of the speed-up; None: not modelled
    of_limit: (
        float  # tokens per second over what memory alone would allow at full depth; more than 1 is possible
    )
    mean_exit_layer: float
    num_free_blocks: int
    shares: dict[str, float]  # shares of the time: segments, head, KV fill, rest


class ModeRun:
    """One mode with its own runner, which shares the weights."""

    def __init__(self, mode: Mode, runner: ModelRunner, batch_size: int, context: int):
        self.mode = mode
        self.runner = runner
        self._batch_size = batch_size
        self._num_made = 0
        self.num_tokens = 0
        self.ms: list[float] = []
        self._layers: list[int] = []
        self._parts = {"head": 0.0, "KV fill": 0.0}
        self._lockstep = Lockstep(runner, batch_size, context)
        self._lockstep.prefill()

    def decode(self, row_tokens: int, counted: bool) -> None:
        """Decode until rows have `row_tokens` more on average, so that contexts of all modes grow alike.

        Only `counted` steps enter the figures.
        """
        wanted = self._num_made + row_tokens * self._batch_size
        while self._num_made < wanted:
            started = time.perf_counter()
            output = self._lockstep.step()
            ms = (time.perf_counter() - started) * 1000
            tokens = [token for part in output.outputs for token in part.tokens]
            self._num_made += len(tokens)
            if counted:
                self.num_tokens += len(tokens)
                self.ms.append(ms)
                self._layers += [token.exit_layer for token in tokens]
                self._note(output.exits)

    def point(self, full: "ModeRun", bound: float | None, limit_ms: float) -> ModePoint:
        """The mode's figures, relative to full depth's."""
        return ModePoint(
            self.mode.value,
            self._batch_size,
            round(self.rate * 1000, 1),
            round(statistics.median(self.ms), 2),
            round(self.rate / full.rate, 3),
            None if bound is None else round(bound, 2),
            round(self.rate * limit_ms / self._batch_size, 3),
            round(statistics.mean(self._layers), 2),
            self.runner.table.pool.num_free,
            {part: round(ms / sum(self.ms), 3) for part, ms in self._parts.items() if ms},
        )

    @property
    def rate(self) -> float:
        """Tokens per millisecond."""
        return self.num_tokens / sum(self.ms)

    def _note(self, exits: Any) -> None:
        if exits is None:
            return
        self._parts["head"] += exits.head_ms
        self._parts["KV fill"] += exits.fill_ms
        for segment, ms in enumerate(exits.segment_ms):
            name = f"segment {segment}"
            self._parts[name] = self._parts.get(name, 0.0) + ms


def measure_times(runner: ModelRunner, batch_size: int, context: int) -> Times:
    """Time each part alone for several numbers of tokens, in the middle of an unused KV cache."""
    segmented = runner.stack
    ways = sorted({(max(1, batch_size // 4), 1), *((batch_size, n) for n in (1, 2, 4))})
    points = [_measure_front(segmented, _front(runner, rows, tokens, context)) for rows, tokens in ways]
    counts = [rows * tokens for rows, tokens in ways]
    segments = [
        Curve([(count, point.segments[s]) for count, point in zip(counts, points, strict=True)])
        for s in range(segmented.num_segments)
    ]
    head = Curve([(count, point.head) for count, point in zip(counts, points, strict=True)])
    alone, filling = points[counts.index(batch_size)], _front(runner, batch_size, 1, context)
    filling.catch_up = _behind(runner, batch_size, context)
    beside = _measure_front(segmented, filling)
    num_filled = batch_size * FILLED_TOKENS
    fills = [
        max(0.0, both - own) / num_filled for both, own in zip(beside.segments, alone.segments, strict=True)
    ]
    return Times(segments, head, fills)


class Parts(msgspec.Struct, frozen=True):
    """Milliseconds of the parts of a pass, by segment."""

    segments: list[float]
    head: float


def _measure_front(segmented: SegmentedDecoder, active: ActiveRows) -> Parts:
    """Median times; the parts take turns."""
    passes: list[Callable[[], object]] = [
        *(functools.partial(segmented.run, segment, active) for segment in range(segmented.num_segments)),
        lambda: segmented.decoder.logits(active.hidden),
    ]
    times: list[list[float]] = [[] for _ in passes]
    synchronize = synchronizer(active.hidden.device)
    with torch.inference_mode():
        for _ in range(MEASURED_TIMES):
            for run, taken in zip(passes, times, strict=True):
                taken.append(measured_ms(run, synchronize))
    *segments, head = map(statistics.median, times)
    return Parts(segments, head)


def _front(runner: ModelRunner, num_rows: int, num_tokens: int, context: int) -> ActiveRows:
    """Rows at the first segment, with `num_tokens` current tokens each."""
    with torch.inference_mode():
        return runner.stack.start([_row(runner, i, num_tokens, context) for i in range(num_rows)])


def _behind(runner: ModelRunner, num_rows: int, context: int) -> CatchUp:
    """Pending tokens of rows, before their current token."""
    rows = [_row(runner, i, FILLED_TOKENS + 1, context) for i in range(num_rows)]
    with torch.inference_mode():
        both = runner.stack.start(rows)
    num_filled = num_rows * FILLED_TOKENS
    return CatchUp(both.hidden[:num_filled], both.batch)


def _row(runner: ModelRunner, number: int, num_tokens: int, context: int) -> Row:
    """A row with its own context, as far as there are blocks."""
    sequence = Sequence(NewSequence(number, 0, [5] * context, context, 1))
    needed, pool = -(-context // runner.table.block_size), runner.table.pool
    sequence.blocks = [(block + number * needed) % pool.num_blocks for block in range(needed)]
    return Row(Chunk(sequence, context - num_tokens, num_tokens), runner.stack.num_segments)


def run_modes(
    options: argparse.Namespace, make: Callable[..., ShardConfig], replay: ReplayFile, agenda: Agenda
) -> list[ModePoint]:
    """Measure every mode at every batch size against full depth."""
    bench = ModeBench(options, make, replay)
    others = [mode for mode in options.exit_modes if mode is not Mode.FULL]
    points: list[ModePoint] = []
    for batch_size in options.batch_sizes:
        has_full = False
        for modes in bench.groups(others, batch_size):
            name = f"batch {batch_size}, {', '.join(modes)}"
            for measured in agenda.run(name, functools.partial(bench.measure, modes, batch_size)):
                points += measured[has_full:]
                has_full = True
    return points


class ModeBench:
    """The setting of all measurements: one model's weights, one distribution of exits."""

    def __init__(self, options: argparse.Namespace, make: Callable[..., ShardConfig], replay: ReplayFile):
        self._options = options
        self._make = make
        self._layers = sorted(replay.shares)
        self._shares = [*(replay.shares[layer] for layer in self._layers), 1 - sum(replay.shares.values())]
        fields = {"exit_mode": "per_row", "kv_fill": "project", "exit_layers": self._layers}
        self._base = ModelRunner(make(**fields, kv_cache_bytes=BASE_KV_BYTES))
        self._device = self._base.decoder.embedding.device
        self._bytes_per_ms = copied_bytes_per_ms(self._device)

    @property
    def _num_warmup_tokens(self) -> int:
        """Warm-up tokens per row: enough for the fallback to choose, else for rows to catch up."""
        return ROUND_TOKENS if self._options.no_exit_fallback else WARMUP_TOKENS

    def groups(self, modes: list[Mode], batch_size: int) -> list[list[Mode]]:
        """Groups of modes that take turns with full depth: as many as memory allows, at least one."""
        count = len(modes)
        if not is_elastic(self._device):
            count = max(1, free_bytes(self._device) // self.kv_bytes(batch_size) - 1)
        return [modes[at : at + count] for at in range(0, len(modes), count)]

    def measure(self, modes: list[Mode], batch_size: int) -> list[ModePoint]:
        """Points of full depth, then of each mode."""
        console, context = Console(stderr=True), self._options.contexts[0]
        runs: list[ModeRun] = []
        for mode in [Mode.FULL, *modes]:
            with console.status(f"batch {batch_size}: preparing {mode}"):
                runs.append(ModeRun(mode, self._runner(mode, batch_size), batch_size, context))
        with console.status(f"batch {batch_size}: measuring"):
            for run in runs:
                run.decode(self._num_warmup_tokens, counted=False)
            for _ in range(max(1, self._options.steps // ROUND_TOKENS)):
                for run in runs:
                    run.decode(ROUND_TOKENS, counted=True)
            times = measure_times(self._base, batch_size, min(context, 256))
        stream = Stream(self._shares, batch_size, Fill(self._options.kv_fill))
        length = context + self._num_warmup_tokens + self._options.steps / 2
        limit_ms = limit_of(self._base, batch_size, length, self._bytes_per_ms).step_ms
        return [run.point(runs[0], bound_of(run.mode, times, stream), limit_ms) for run in runs]

    def _runner(self, mode: Mode, batch_size: int) -> ModelRunner:
        fields = _mode_fields(mode, self._layers, self._options)
        config = self._make(**fields, kv_cache_bytes=self.kv_bytes(batch_size), max_batch_size=batch_size)
        return ModelRunner(config, decoder=self._base.decoder)

    def kv_bytes(self, batch_size: int) -> int:
        """KV cache that holds every sequence in all layers, also those that get ahead of others."""
        made, block_size = 2 * (self._num_warmup_tokens + self._options.steps), self._base.table.block_size
        num_blocks = batch_size * -(-(self._options.contexts[0] + made + 2 * block_size) // block_size)
        return int(num_blocks * self._base.block_bytes)


def _mode_fields(mode: Mode, layers: list[int], options: argparse.Namespace) -> dict[str, Any]:
    if mode is Mode.FULL:
        return {}
    if mode is Mode.CAPPED:
        return {"exit_mode": "capped", "num_layers": layers[0], "exit_layers": [layers[0]]}
    return {
        "exit_mode": mode.value,
        "exit_layers": layers,
        "kv_fill": options.kv_fill,
        "replay_exits": None if mode is Mode.SPECULATIVE else str(options.replay_exits),
        "exit_fallback": not options.no_exit_fallback,
    }


def table_of(points: list[ModePoint]) -> Table:
    """A table for the terminal."""
    table = Table(
        "batch",
        "mode",
        "tokens/s",
        "step ms",
        "speed-up",
        "bound",
        "of limit",
        "mean exit",
        "free blocks",
        "time by part",
    )
    for point in points:
        parts = ", ".join(f"{part} {share:.0%}" for part, share in point.shares.items())
        numbers = (
            point.tokens_per_s,
            point.step_ms,
            point.speedup,
            point.bound or "",
            f"{point.of_limit:.0%}",
            point.mean_exit_layer,
            point.num_free_blocks,
        )
        table.add_row(str(point.batch_size), point.mode, *map(str, numbers), parts)
    return table


def read_distribution(path: Path) -> ReplayFile:
    """A replay file that names at least one exit."""
    from shard.exits.replay import read_replay

    file = read_replay(path)
    if not file.shares:
        raise ValueError(f"{path} names no exit layer")
    return file
