"""The exits that ship with the project: small, whole, and right about the model they were made for."""

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from shard.tune.batches import Source
from shard.tune.evaluation import predictions_of
from shard.tune.folder import load_heads, load_vocabulary
from shard.tune.layers import read_backbone
from shard.tune.prompts import encode_prompts, is_held_out, read_prompts
from shard.tune.states import open_or_make
from shard.tune.text import Passage
from shard.tune.training import Student
from shard.tune.vocabulary import Fixed
from tests.shard.driving import generate, make_runner

FOLDER = Path(__file__).parents[3] / "shard" / "exits_embedded"
VARIANTS = ("chat", "code")


def test_together_they_are_small_and_share_one_vocabulary():
    files = [path for path in FOLDER.rglob("*") if path.is_file() and path.name != "drafter.safetensors"]
    assert sum(path.stat().st_size for path in files) <= 40_000_000
    assert len(list(FOLDER.rglob("vocabulary.safetensors"))) == 1
    for variant in VARIANTS:
        described = json.loads((FOLDER / variant / "exits.json").read_text())
        assert described["num_layers"] == 30
        assert len(described["exits"]) >= 3
        assert described["vocabulary"] == "../vocabulary.safetensors"


@pytest.mark.parametrize("variant", VARIANTS)
def test_matrices_are_int8_and_every_exit_has_a_probe(variant: str):
    with safe_open(FOLDER / variant / "exits.safetensors", framework="pt") as file:
        names = set(file.keys())
        matrices = {name for name in names if name + "_scale" in names}
        assert all(file.get_tensor(name).dtype == torch.int8 for name in matrices)
    layers = {name.split(".")[1] for name in names}
    assert all(f"exits.{layer}.probe.weight" in names for layer in layers)
    assert all(f"exits.{layer}.low_rank.weight" in matrices for layer in layers)


@pytest.mark.parametrize("variant", VARIANTS)
def test_on_prompts_never_seen_each_exit_says_what_full_depth_says_more_often_than_the_one_before(
    variant: str, embedded_model: Path, tmp_path: Path
):
    runner = make_runner(embedded_model, dtype="bfloat16", max_total_tokens=256, kv_cache_bytes=1 << 26)
    prompts = encode_prompts(
        embedded_model, [prompt for prompt in read_prompts(variant) if is_held_out(prompt)][:5]
    )
    answers = [made.ids for made in generate(runner, prompts, 32, ignore_eos=False)]
    passages = [Passage([*prompt, *ids], len(prompt)) for prompt, ids in zip(prompts, answers, strict=True)]
    back = read_backbone(embedded_model, 256, torch.device("cpu"))
    heads = load_heads(FOLDER / variant, torch.device("cpu"))
    cache = open_or_make(
        tmp_path, "", passages, [head.layer for head in heads], lambda: runner, lambda done: None
    )
    source = Source("held out", cache, [], [], list(range(len(passages))))
    vocabulary = load_vocabulary(FOLDER / variant, torch.device("cpu"))
    student = Student(back, heads, Fixed(vocabulary), torch.empty(0, dtype=torch.bfloat16))
    places = [(0, passage) for passage in range(len(passages))]
    seen = predictions_of(student, vocabulary, [source], places, states=False)
    agreement = [float(votes.agrees.float().mean()) for votes in seen.values()]
    assert agreement == sorted(agreement)
    assert agreement[0] > 0.3
    assert agreement[-1] > 0.55
