"""Random weights stand in for published shapes, whole or narrowed in proportion."""

import json
from pathlib import Path

import pytest

from shard.models.model_folder import ModelUnusable
from shard.models.random_weights import SHAPES, write_random_model
from tests.shard.driving import generate, make_runner


def config_of(name: str, folder: Path) -> dict[str, int]:
    write_random_model(name, folder)
    config: dict[str, int] = json.loads((folder / "config.json").read_text())
    return config


def test_a_narrowed_shape_keeps_its_layers_and_proportions(tmp_path: Path):
    whole, narrow = SHAPES["opt-1.3b"], config_of("random:opt-1.3b:4", tmp_path)
    assert narrow["num_hidden_layers"] == whole["num_hidden_layers"] == 24
    for width in ("hidden_size", "ffn_dim", "num_attention_heads", "vocab_size", "word_embed_proj_dim"):
        assert narrow[width] == whole[width] // 4


@pytest.mark.parametrize("name", ["random:opt-1.3b:16", "random:llama3-8b:8"])
def test_a_narrow_model_runs(name: str, tmp_path: Path):
    config = config_of(name, tmp_path)
    (made,) = generate(make_runner(tmp_path, dtype="bfloat16", max_total_tokens=64), [[5, 6, 7]], 4)
    assert all(0 <= id < config["vocab_size"] for id in made.ids)


@pytest.mark.parametrize(
    ("name", "complaint"),
    [
        ("random:opt-2b", "no shape 'random:opt-2b': choose random:smollm2-135m, "),
        ("random:opt-1.3b:3", "cannot be narrowed by 3"),
        ("random:opt-1.3b:half", "cannot be narrowed by half"),
        ("random:opt-1.3b:0", "cannot be narrowed by 0"),
    ],
)
def test_a_shape_that_is_none_is_refused(name: str, complaint: str, tmp_path: Path):
    with pytest.raises(ModelUnusable, match=complaint):
        write_random_model(name, tmp_path)
