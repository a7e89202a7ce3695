"""Exits of a model trained for them: easy tokens leave early, hard ones go deep."""

import random
from pathlib import Path

from shard.messages import NewSequence, Step, Work
from tests.shard.driving import generate, make_runner, score
from tests.shard.trained_model import LETTERS, NUM_LAYERS, sentence


def test_easy_tokens_leave_early_and_hard_ones_do_not(trained: Path):
    runner = make_runner(
        trained, exit_mode="per_row", exit_layers=[1, 2, 3], exit_fallback=False, exit_threshold=0.9
    )
    full = make_runner(trained)
    draw = random.Random(5)
    easy_layers, hard_layers, early, agreed = [], [], [], []
    for _ in range(12):
        tokens, _ = sentence(draw)
        made = generate(runner, [tokens[:9]], 20)[0]  # up to the first answer
        hard_layers.append(_exit_of_first_value(runner, tokens))
        previous = tokens[8]
        for token in made.tokens:
            if previous in LETTERS and token.id == (previous + 1) % len(LETTERS):
                easy_layers.append(token.exit_layer)
            previous = token.id
        choices = [each.choice for each in score(full, tokens[:9], made.ids)]
        early += [token.exit_layer < NUM_LAYERS for token in made.tokens]
        agreed += [
            choice == token.id
            for choice, token in zip(choices, made.tokens, strict=True)
            if token.exit_layer < NUM_LAYERS
        ]
    coverage, agreement = sum(early) / len(early), sum(agreed) / len(agreed)
    assert len(easy_layers) >= 60
    assert sum(easy_layers) / len(easy_layers) + 0.5 < sum(hard_layers) / len(hard_layers)
    assert coverage >= 0.4
    assert agreement >= 0.93


def _exit_of_first_value(runner, tokens: list[int]) -> int:
    """Where the first question's value leaves, the key being a token of the answer already."""
    new = NewSequence(0, 0, tokens[:8], 7, 2, ignore_eos=True)
    return runner.run(Step(0, [Work(0, 0, 64)], [new])).outputs[0].tokens[0].exit_layer
