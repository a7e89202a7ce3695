"""In half precision the engine says what it says in float32, up to rounding: families, modes, block sizes."""

from pathlib import Path

import pytest
import torch

from shard.messages import Sampling, TokenOutput
from shard.runner import ModelRunner
from tests.shard.driving import between, generate, make_runner, prompts_of, score
from tests.shard.exit_files import write_exits

MEAN_ERROR, GREATEST_ERROR = 0.12, 1.0  # of log-probabilities that spread by 1.6; a wrong key costs more
LENGTHS = [200, 30, 90, 5]  # with the answers, up to one block of 256 and a second one begun
PROMPT = Sampling(prompt_logprobs=True)


def assert_close(found: list[float], expected: list[float]) -> None:
    error = (torch.tensor(found) - torch.tensor(expected)).abs()
    assert error.mean() < MEAN_ERROR
    assert error.max() < GREATEST_ERROR


def logprobs(tokens: list[TokenOutput]) -> list[float]:
    return [token.logprob for token in tokens]


def full_depths(exact: ModelRunner, prompt: list[int], made: list[TokenOutput]) -> list[float]:
    """What float32 makes of an answer's tokens."""
    return [each.logprob for each in score(exact, prompt, [token.id for token in made])]


@pytest.mark.parametrize("block_size", [16, 256])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_prompts_and_answers_of_every_family(every_tiny_model: Path, dtype: str, block_size: int):
    runner, exact = (
        make_runner(every_tiny_model, dtype=dtype, block_size=block_size),
        make_runner(every_tiny_model),
    )
    prompts = prompts_of(runner.decoder.shape.vocab_size, LENGTHS)
    made = generate(runner, prompts, 40, [PROMPT] * len(prompts), chunk=64)
    known = generate(exact, prompts, 0, [PROMPT] * len(prompts))
    for prompt, ours, theirs in zip(prompts, made, known, strict=True):
        assert_close(logprobs(ours.prompt), logprobs(theirs.prompt))
        assert_close(logprobs(ours.tokens), full_depths(exact, prompt, ours.tokens))


@pytest.mark.parametrize("block_size", [16, 256])
@pytest.mark.parametrize(
    "config",
    [
        {"exit_mode": "per_row"},
        {"exit_mode": "per_row", "exit_deferral": False},
        {"exit_mode": "synchronized"},
        {"exit_mode": "speculative"},
    ],
    ids=lambda config: "-".join(map(str, config.values())),
)
def test_tokens_of_full_depth_in_every_mode(tiny_model, tmp_path: Path, config, block_size: int):
    """Those that leave nowhere, beside others that do: what these leave undone is made up for exactly."""
    model = tiny_model("qwen3")
    exits = str(write_exits(tmp_path / "exits", model, [1, 2], "block"))
    settings = {
        "exits": exits,
        "exit_fallback": False,
        "dtype": "bfloat16",
        "block_size": block_size,
    } | config
    prompts = prompts_of(259, LENGTHS)
    first = generate(make_runner(model, **settings, exit_threshold=0.0), prompts, 12)
    threshold = between([token.confidence or 0.0 for each in first for token in each.tokens[1:]], 0.33)
    runner, exact = make_runner(model, **settings, exit_threshold=threshold), make_runner(model)
    early, found, expected = 0, [], []
    for prompt, made in zip(prompts, generate(runner, prompts, 50), strict=True):
        for token, logprob in zip(made.tokens, full_depths(exact, prompt, made.tokens), strict=True):
            if token.exit_layer < 4:
                early += 1
            else:
                found.append(token.logprob)
                expected.append(logprob)
    assert len(found) > 20
    assert early > 5 or config["exit_mode"] == "speculative"
    assert_close(found, expected)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_capped_and_windowed(tmp_path: Path, dtype: str):
    from tests.tiny_models import write_tiny_model

    model = write_tiny_model(tmp_path / "windowed", "mistral", sliding_window=24)
    config = {"exit_mode": "capped", "num_layers": 3, "exit_layers": [3], "exit_threshold": 0.0}
    prompts = prompts_of(259, LENGTHS)
    for block_size in (16, 256):
        made = generate(make_runner(model, **config, dtype=dtype, block_size=block_size), prompts, 40)
        exact = make_runner(model, num_layers=3, score_budget=0.0)
        for prompt, each in zip(prompts, made, strict=True):
            assert_close(logprobs(each.tokens), full_depths(exact, prompt, each.tokens))
