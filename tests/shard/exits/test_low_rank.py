"""A vocabulary's head of low rank stands in for the LM head: in votes, draws, drafts and what is reported."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from shard.messages import Sampling
from shard.models.shape import read_config, shape_of
from shard.runner import ModelRunner
from tests.shard.driving import between, generate, make_runner, prompts_of
from tests.shard.exit_files import change_tensors, quantise, write_exits

LENGTHS = [3, 17, 40, 9, 33, 5]
CRITERIA = ["softmax", "margin", "similarity", "classifier"]


def exiting(model: Path, folder: Path, mode: str = "per_row", **config) -> ModelRunner:
    settings = {"exit_fallback": False, "exit_threshold": 0.3} | config
    return make_runner(model, exit_mode=mode, exits=str(folder), **settings)


def said(runner: ModelRunner) -> list[list[tuple]]:
    """What a runner says to some prompts, with all that it reports of each token."""
    asked = [
        Sampling(temperature=0.8 * (i % 2), seed=i, num_top_tokens=i % 3, top_p=1 - 0.1 * (i % 2))
        for i in range(len(LENGTHS))
    ]
    made = generate(runner, prompts_of(runner.decoder.shape.vocab_size, LENGTHS), 12, asked)
    return [
        [
            (t.id, t.exit_layer, [id for id, _ in t.top], t.logprob, t.confidence or -1.0)
            for t in generation.tokens
        ]
        for generation in made
    ]


def assert_same(found: list[list[tuple]], expected: list[list[tuple]]) -> None:
    """Tokens, exits and alternatives; log-probabilities and confidences up to the order of sums."""
    for ours, theirs in zip(found, expected, strict=True):
        assert [token[:3] for token in ours] == [token[:3] for token in theirs]
        for token, other in zip(ours, theirs, strict=True):
            assert token[3:] == pytest.approx(other[3:], abs=1e-3)


def layers_of(said: list[list[tuple]]) -> set[int]:
    return {token[1] for tokens in said for token in tokens}


@pytest.fixture
def whole_head(tiny_model, tmp_path: Path) -> tuple[Path, Path, Path]:
    """A model, exits with its own head, and the same exits with that head as one of full rank."""
    model = tiny_model("llama")
    shape = shape_of(read_config(model))
    plain = write_exits(tmp_path / "plain", model, [1, 2, 3], "mlp")
    folder = write_exits(tmp_path / "low", model, [1, 2, 3], "mlp", rank=shape.hidden_size)
    from safetensors.torch import load_file

    embedding = load_file(model / "model.safetensors")["model.embed_tokens.weight"]
    same = load_file(plain / "exits.safetensors")
    turn = torch.linalg.qr(torch.randn(64, 64, generator=torch.Generator().manual_seed(3)))[0]

    def as_the_head(tensors: dict[str, torch.Tensor]) -> None:
        tensors |= same | {f"exits.{layer}.low_rank.weight": turn for layer in (1, 2, 3)}
        tensors["vocabulary.weight"] = embedding @ turn.t()

    change_tensors(folder / "exits.safetensors", as_the_head)
    return model, plain, folder


@pytest.mark.parametrize("mode", ["per_row", "synchronized", "capped"])
@pytest.mark.parametrize("criterion", CRITERIA)
def test_at_full_rank_it_is_the_lm_head(whole_head, mode: str, criterion: str):
    model, plain, folder = whole_head
    config = {"exit_criterion": criterion, "num_layers": 2 if mode == "capped" else None}
    expected = said(exiting(model, plain, mode, **config))
    assert_same(said(exiting(model, folder, mode, **config)), expected)
    assert len(layers_of(expected)) >= 2 or mode != "per_row"


def test_some_exits_may_have_it_and_some_not(whole_head):
    model, plain, folder = whole_head
    file = json.loads((folder / "exits.json").read_text())
    del file["exits"][1]["rank"]
    (folder / "exits.json").write_text(json.dumps(file))
    assert_same(said(exiting(model, folder)), said(exiting(model, plain)))


@pytest.mark.parametrize("criterion", CRITERIA)
def test_rows_leave_alone_whoever_shares_their_batch(tiny_model, tmp_path: Path, criterion: str):
    model = tiny_model("qwen3")
    folder = write_exits(tmp_path / "exits", model, [1, 2], "norm", rank=8)
    first = said(exiting(model, folder, exit_criterion=criterion, exit_threshold=0.0))
    threshold = between([token[4] for tokens in first for token in tokens[1:]])
    runner = exiting(model, folder, exit_criterion=criterion, exit_threshold=threshold)
    prompts = prompts_of(runner.decoder.shape.vocab_size, LENGTHS)
    together = generate(runner, prompts, 12)
    assert len({t.exit_layer for g in together for t in g.tokens}) >= 2
    for prompt, made in zip(prompts, together, strict=True):
        alone = generate(runner, [prompt], 12)[0]
        assert [(t.id, t.exit_layer) for t in alone.tokens] == [(t.id, t.exit_layer) for t in made.tokens]


def test_int8_is_what_its_scales_make_of_it(tiny_model, tmp_path: Path):
    model = tiny_model("llama")
    small = write_exits(tmp_path / "small", model, [1, 2], "mlp", rank=8)
    wide = write_exits(tmp_path / "wide", model, [1, 2], "mlp", rank=8)
    change_tensors(small / "exits.safetensors", quantise)

    def quantise_and_back(tensors: dict[str, torch.Tensor]) -> None:
        quantise(tensors)
        for name in [name for name in tensors if name.endswith("_scale")]:
            tensors[name.removesuffix("_scale")] = tensors[name.removesuffix("_scale")] * tensors.pop(name)

    change_tensors(wide / "exits.safetensors", quantise_and_back)
    assert_same(said(exiting(model, small)), said(exiting(model, wide)))


def test_variants_share_a_vocabulary_in_a_file_of_its_own(tiny_model, tmp_path: Path):
    from safetensors.torch import save_file

    model = tiny_model("llama")
    folder = write_exits(tmp_path / "exits", model, [1, 2], "norm", rank=8)
    expected = said(exiting(model, folder))
    taken: dict[str, torch.Tensor] = {}
    change_tensors(
        folder / "exits.safetensors",
        lambda tensors: taken.update({"vocabulary.weight": tensors.pop("vocabulary.weight")}),
    )
    save_file(taken, tmp_path / "vocabulary.safetensors")
    file = json.loads((folder / "exits.json").read_text())
    (folder / "exits.json").write_text(json.dumps(file | {"vocabulary": "../vocabulary.safetensors"}))
    assert_same(said(exiting(model, folder)), expected)


@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_drafts_come_from_it_and_change_nothing(tiny_model, whole_head, tmp_path: Path, temperature: float):
    model, _, agreeing = whole_head
    poor = write_exits(tmp_path / "poor", model, [1, 3], "norm", rank=4)
    full = make_runner(model)
    prompts = prompts_of(full.decoder.shape.vocab_size, LENGTHS)
    asked = [Sampling(temperature=temperature, seed=i) for i in range(len(prompts))]
    expected = [g.ids for g in generate(full, prompts, 20, asked)]
    for folder in (agreeing, poor):
        runner = exiting(model, folder, "speculative")
        assert [g.ids for g in generate(runner, prompts, 20, asked)] == expected


class Counted:
    """A product that counts its rows."""

    def __init__(self, linear):
        self.linear = linear
        self.num_rows = 0

    def __call__(self, features: torch.Tensor) -> torch.Tensor:
        self.num_rows += len(features)
        return self.linear(features)


@pytest.mark.parametrize("criterion", ["softmax", "margin"])
def test_heads_run_only_for_rows_that_the_probe_finds_promising(tiny_model, tmp_path: Path, criterion: str):
    """Below the floor nobody leaves and no head is run; above it all is as without one."""
    model = tiny_model("llama")
    chances = []
    free = write_exits(tmp_path / "free", model, [2], "norm", rank=8)
    probing = exiting(model, free, exit_criterion="classifier", exit_threshold=0.0)
    for tokens in said(probing):
        chances += [token[4] for token in tokens[1:]]
    middle = between(chances)
    asked_rows, left = {}, {}
    for floor in (0.0, middle, 1.0):
        folder = write_exits(tmp_path / f"floor-{floor}", model, [2], "norm", rank=8, probe_floor=floor)
        runner = exiting(model, folder, exit_criterion=criterion, exit_threshold=0.02)
        exit_head: Any = runner.stack.exits[0]
        exit_head.vocabulary = Counted(exit_head.vocabulary)
        left[floor] = sum(token[1] == 2 for tokens in said(runner) for token in tokens)
        asked_rows[floor] = exit_head.vocabulary.num_rows
    assert left[0.0] > left[middle] > left[1.0] == 0
    assert asked_rows[0.0] > asked_rows[middle] > asked_rows[1.0] == 0
    unasked, asked = (
        said(exiting(model, folder, exit_criterion=criterion, exit_threshold=0.02))
        for folder in (free, tmp_path / "floor-0.0")
    )
    assert [[token[:3] for token in tokens] for tokens in asked] == [
        [token[:3] for token in tokens] for tokens in unasked
    ]
    for ours, theirs in zip(asked, unasked, strict=True):  # products of other rows may round otherwise
        assert [token[3:] for token in ours] == [pytest.approx(token[3:], abs=1e-5) for token in theirs]
