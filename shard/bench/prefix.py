"""What the prefix cache costs where nothing repeats: the same engine with and without it, in turns."""

import functools
import random
import statistics
import time
from collections.abc import Callable

import msgspec
from rich.table import Table

from shard.bench.agenda import Agenda
from shard.messages import NewSequence, ShardConfig
from shard.offline import OfflineEngine
from shard.runner import ModelRunner

PROMPT_TOKENS, ANSWER_TOKENS = 128, 32


class Overhead(msgspec.Struct, frozen=True):
    """Throughput of prompts and answers together; `cost`: time with the cache over that without, less 1."""

    batch_size: int
    tokens_per_s: float  # with the cache
    tokens_per_s_without: float
    cost: float
    table_us_per_block: float  # of the cache's own bookkeeping, where the step's time hides it


def run_overheads(
    batch_sizes: list[int], num_rounds: int, config_of: Callable[..., ShardConfig], agenda: Agenda
) -> list[Overhead]:
    """One figure for each batch size. Raises as `ModelRunner` does."""
    without = ModelRunner(config_of())
    cached = ModelRunner(config_of(prefix_cache=True), decoder=without.decoder)
    found: list[Overhead] = []
    for batch_size in batch_sizes:
        found += agenda.run(
            f"batch {batch_size}", functools.partial(measure, cached, without, batch_size, num_rounds)
        )
    return found


def measure(cached: ModelRunner, without: ModelRunner, batch_size: int, num_rounds: int) -> Overhead:
    """Answer fresh random prompts with both, step by step in turns: a busy machine disturbs both alike.

    A round's time is the sum over its steps of each one's median over rounds.
    """
    draw = random.Random(batch_size)
    rounds = [_round(cached, without, draw, batch_size) for _ in range(num_rounds + 1)]
    steps = list(zip(*rounds[1:], strict=True))  # by step: of each round both times; the first warms up
    with_s, without_s = (sum(statistics.median(pair[i] for pair in step) for step in steps) for i in (0, 1))
    num_tokens = batch_size * (PROMPT_TOKENS + ANSWER_TOKENS)
    return Overhead(
        batch_size,
        round(num_tokens / with_s, 1),
        round(num_tokens / without_s, 1),
        round(with_s / without_s - 1, 4),
        round(table_us_per_block(cached), 2),
    )


def table_of(overheads: list[Overhead]) -> Table:
    table = Table("batch", "tokens/s", "without the cache", "cost", "us per block in the table")
    for found in overheads:
        rates = (found.tokens_per_s, found.tokens_per_s_without)
        table.add_row(
            str(found.batch_size), *map(str, rates), f"{found.cost:+.2%}", str(found.table_us_per_block)
        )
    return table


def table_us_per_block(runner: ModelRunner, num_blocks: int = 512) -> float:
    """Microseconds to make a block's key, to enter it, and to give it up for the next."""
    keys, pool = runner.table.keys, runner.table.pool
    count = min(num_blocks, pool.num_free)
    ids = list(range(count * keys.block_size))
    began = time.perf_counter()
    blocks = pool.take(count)
    for block, key in zip(blocks, keys.follow(keys.first("bench"), ids, 0, count), strict=True):
        pool.enter(block, key)
    pool.give_back(blocks)
    return (time.perf_counter() - began) / count * 1e6


def _round(
    cached: ModelRunner, without: ModelRunner, draw: random.Random, batch_size: int
) -> list[tuple[float, float]]:
    """Answer a batch of random prompts with both engines; seconds of each step of both."""
    engines = OfflineEngine(cached, batch_size), OfflineEngine(without, batch_size)
    for id in range(batch_size):
        prompt = [draw.randrange(cached.decoder.shape.vocab_size) for _ in range(PROMPT_TOKENS)]
        for engine in engines:
            engine.add(NewSequence(id, 0, prompt, PROMPT_TOKENS, ANSWER_TOKENS, ignore_eos=True))
    times: list[tuple[float, float]] = []
    while engines[0].has_unfinished:
        order = engines if len(times) % 2 else engines[::-1]  # who comes second finds warmer caches
        took = {engine: _seconds(engine) for engine in order}
        times.append((took[engines[0]], took[engines[1]]))
    return times


def _seconds(engine: OfflineEngine) -> float:
    began = time.perf_counter()
    engine.step()
    return time.perf_counter() - began
