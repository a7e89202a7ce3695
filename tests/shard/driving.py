"""Driving a runner by hand, the way a router would: prompts in, tokens out."""

import itertools
import os
from collections.abc import Sequence as Items
from pathlib import Path

import msgspec

from shard.messages import NewSequence, Sampling, SequenceOutput, ShardConfig, Step, TokenOutput, Work
from shard.runner import ModelRunner

DEVICE = os.environ.get("DEVICE", "cpu")
SETTINGS = {
    "device": DEVICE,
    "dtype": "float32",
    "kv_cache_bytes": 1 << 24,
    "block_size": 16,
    "num_threads": 1,
}

DTYPE = os.environ.get("HELIOS_TEST_DTYPE", "float32")  # set where rows of CPUs are imitated: test_rows.py


def make_runner(folder: Path, **config) -> ModelRunner:
    settings = SETTINGS | config
    return ModelRunner(ShardConfig(model=str(folder), **settings))


def between(values: list[float], share: float = 0.5) -> float:
    """A threshold that about this share of the values lies under, in the middle of the widest gap there.

    Sums round differently in another batch, and on another device: no value may stand on a threshold.
    """
    ranked, reach = sorted(values), len(values) // 8 + 1
    middle = int(share * len(ranked))
    near = ranked[max(0, middle - reach) : middle + reach + 1]
    low, high = max(itertools.pairwise(near), key=lambda pair: pair[1] - pair[0])
    return (low + high) / 2


def kv_bytes(num_blocks: int, folder: Path, **config) -> int:
    """What a KV cache of so many blocks takes, however the device lays them out."""
    return num_blocks * make_runner(folder, **config).block_bytes


class Generation(msgspec.Struct):
    """What came back for one prompt."""

    tokens: list[TokenOutput] = []
    prompt: list[TokenOutput] = []
    finish: str | None = None
    num_preemptions: int = 0

    @property
    def ids(self) -> list[int]:
        return [token.id for token in self.tokens]


def generate(
    runner: ModelRunner,
    prompts: Items[list[int]],
    max_new_tokens: int = 12,
    sampling: Items[Sampling] | None = None,
    chunk: int = 512,
    ignore_eos: bool = True,
    exact: Items[bool] | None = None,
    exit_threshold: float | None = None,
) -> list[Generation]:
    """Run all prompts together to their ends, `chunk` tokens of each per step; replay the preempted."""
    done = [Generation() for _ in prompts]
    attempts = [0 for _ in prompts]

    def new(i: int) -> NewSequence:
        return NewSequence(
            i,
            attempts[i],
            prompts[i] + done[i].ids,
            len(prompts[i]),
            max_new_tokens,
            ignore_eos,
            sampling[i] if sampling else Sampling(),
            exit_threshold,
            bool(exact and exact[i]),
        )

    fresh = list(range(len(prompts)))
    number = 0
    while any(generation.finish is None for generation in done):
        live = [i for i, generation in enumerate(done) if generation.finish is None]
        output = runner.run(
            Step(number, [Work(i, attempts[i], chunk) for i in live], [new(i) for i in fresh])
        )
        number += 1
        assert number < 5000, "no progress"
        for part in output.outputs:
            _take(done[part.id], part)
        fresh = [id for id, _ in output.preempted]
        for id in fresh:
            attempts[id] += 1
            done[id].num_preemptions += 1
            done[id].prompt = []
    assert len(runner.table) == 0
    assert runner.table.pool.num_free == runner.table.pool.num_blocks
    return done


def _take(generation: Generation, part: SequenceOutput) -> None:
    generation.tokens += part.tokens
    generation.prompt += part.prompt
    generation.finish = part.finish
