"""Driving a runner by hand, the way a router would: prompts in, tokens out."""

import itertools
import os
import random
from collections.abc import Sequence as Items
from pathlib import Path

import msgspec
import torch

from shard.messages import (
    Grammar,
    NewSequence,
    Sampling,
    Score,
    SequenceOutput,
    ShardConfig,
    Step,
    TokenOutput,
    Work,
)
from shard.runner import ModelRunner

DEVICE = os.environ.get("DEVICE", "cpu")
SETTINGS = {
    "device": DEVICE,
    "dtype": "float32",
    "kv_cache_dtype": os.environ.get("HELIOS_TEST_KV", "auto"),
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
    """The result of one prompt."""

    tokens: list[TokenOutput] = []
    prompt: list[TokenOutput] = []
    finish: str | None = None
    num_preemptions: int = 0
    num_cached_tokens: int = 0
    error: str = ""

    @property
    def is_over(self) -> bool:
        return self.finish is not None or bool(self.error)

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
    grammars: Items[str] | None = None,
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
            grammar=Grammar(grammars[i]) if grammars and grammars[i] else None,
        )

    fresh = list(range(len(prompts)))
    number = 0
    while not all(generation.is_over for generation in done):
        live = [i for i, generation in enumerate(done) if not generation.is_over]
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
    generation.num_cached_tokens += part.num_cached_tokens
    generation.error = part.error


def prompts_of(vocab_size: int, lengths: list[int], seed: int = 0) -> list[list[int]]:
    draw = random.Random(seed)
    return [[draw.randrange(3, vocab_size) for _ in range(length)] for length in lengths]


def load_reference(
    folder: Path, num_layers: int | None = None, gguf_file: str | None = None
) -> torch.nn.Module:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, gguf_file=gguf_file)
    if num_layers is not None:
        decoder = getattr(model, "transformer", None) or getattr(model.model, "decoder", model.model)
        layers = "h" if hasattr(decoder, "h") else "layers"
        setattr(decoder, layers, getattr(decoder, layers)[:num_layers])
    return model.eval()


GREEDY = Sampling()


def score(runner, prompt, answer, sampling=GREEDY, chunk=512, grammar=None):
    new = NewSequence(0, 0, prompt + answer, len(prompt), 0, False, sampling, scores=True, grammar=grammar)
    scores, number = [], 0
    while number == 0 or len(runner.table):
        output = runner.run(Step(number, [Work(0, 0, chunk)], [new] if number == 0 else []))
        scores += output.outputs[0].scores
        assert output.outputs[0].tokens == []
        number += 1
    return scores


def num_left_at(sequence, segment: int) -> int:
    """Tokens that have not entered a segment, those that wait at the first exit with them."""
    waiting = sequence.runner_state.waiting if segment == 1 else []
    return sum(len(piece) for piece in sequence.runner_state.pending[segment] + waiting)


SAMPLED = Sampling(temperature=0.8, seed=11)


def scored(runner: ModelRunner, prompt: list[int], answer: list[int], chunk: int = 512) -> list[Score]:
    """Score an answer alone, step by step: each step of an idle device does a piece."""
    new = NewSequence(7, 0, prompt + answer, len(prompt), 0, sampling=SAMPLED, scores=True)
    for number in range(500):
        output = runner.run(Step(number, [Work(7, 0, chunk)], [new] if number == 0 else []))
        done = [made for made in output.outputs if made.finish]
        if done:
            assert len(runner.table) == 0
            assert runner.table.pool.num_free == runner.table.pool.num_blocks
            return done[0].scores
    raise AssertionError("it never ended")
