"""Exits of a model trained for them: a small one, on a small language, with LayerSkip's losses, in seconds.

A sentence is a dictionary of pairs (key value), then questions (`#` key value), whose value takes layers of
attention to find, and runs of rising letters, which any layer can continue.
"""

import random
from pathlib import Path

import pytest
import torch

from shard.messages import NewSequence, Step, Work
from tests.shard.engine import generate, make_runner
from tests.shard.test_runner import score

LETTERS, KEYS, VALUES, MARK = range(16), range(16, 24), range(24, 32), 32
VOCAB, NUM_LAYERS, RUN = 40, 4, 6
STEPS, BATCH = 260, 48


def sentence(draw: random.Random) -> tuple[list[int], list[bool]]:
    """Tokens, and which of them are easy: letters inside a run."""
    keys, values = draw.sample(KEYS, 3), [draw.choice(VALUES) for _ in range(3)]
    tokens = [token for pair in zip(keys, values, strict=True) for token in pair]
    easy = [False] * len(tokens)
    for _ in range(3):
        asked = draw.randrange(3)
        first = draw.choice(LETTERS)
        tokens += [MARK, keys[asked], values[asked], *((first + i) % len(LETTERS) for i in range(RUN))]
        easy += [False] * 4 + [True] * (RUN - 1)
    return tokens, easy


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every layer's state learns to predict through the shared norm and head; deep layers drop out more."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=VOCAB,
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=NUM_LAYERS,
            num_attention_heads=4,
            max_position_embeddings=128,
            tie_word_embeddings=True,
            bos_token_id=None,
            eos_token_id=None,
            pad_token_id=None,
        )
    )
    for index, layer in enumerate(model.model.layers):
        rate = 0.1 * index / (NUM_LAYERS - 1)
        layer.register_forward_hook(
            lambda _, given, made, rate=rate: given[0] if random.random() < rate else made
        )
    draw = random.Random(1)
    random.seed(1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=4e-3, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, total_steps=STEPS)
    for _ in range(STEPS):
        batch = torch.tensor([sentence(draw)[0] for _ in range(BATCH)])
        *states, last = model.model(batch, output_hidden_states=True).hidden_states[1:]  # the last is normed
        logits = [model.lm_head(model.model.norm(state)) for state in states] + [model.lm_head(last)]
        losses = [
            torch.nn.functional.cross_entropy(each[:, 6:-1].flatten(0, 1), batch[:, 7:].flatten())
            for each in logits
        ]
        loss = 0.2 * sum(losses[:-1]) + losses[-1]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    folder = tmp_path_factory.mktemp("trained")
    model.save_pretrained(folder)
    return folder


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
