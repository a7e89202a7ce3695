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
    cost: float  # median over rounds
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
    """Answer fresh random prompts in turns; which engine begins changes from round to round."""
    draw = random.Random(batch_size)
    for runner in (cached, without):
        _round(runner, draw, batch_size)
    seconds: dict[ModelRunner, list[float]] = {cached: [], without: []}
    for number in range(num_rounds):
        state = draw.getstate()
        for runner in (cached, without)[:: 1 if number % 2 else -1]:
            draw.setstate(state)  # both answer the same prompts
            seconds[runner].append(_round(runner, draw, batch_size))
    num_tokens = batch_size * (PROMPT_TOKENS + ANSWER_TOKENS)
    ratios = [one / other for one, other in zip(seconds[cached], seconds[without], strict=True)]
    return Overhead(
        batch_size,
        round(num_tokens / statistics.median(seconds[cached]), 1),
        round(num_tokens / statistics.median(seconds[without]), 1),
        round(statistics.median(ratios) - 1, 4),
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


def _round(runner: ModelRunner, draw: random.Random, batch_size: int) -> float:
    """Answer a batch of random prompts to their ends; returns seconds."""
    engine, vocab_size = OfflineEngine(runner, batch_size), runner.decoder.shape.vocab_size
    for id in range(batch_size):
        prompt = [draw.randrange(vocab_size) for _ in range(PROMPT_TOKENS)]
        engine.add(NewSequence(id, 0, prompt, PROMPT_TOKENS, ANSWER_TOKENS, ignore_eos=True))
    began = time.perf_counter()
    while engine.has_unfinished:
        engine.step()
    return time.perf_counter() - began
