"""The router reads of a model what the shard finds in it."""

import json
from pathlib import Path
from typing import Any

import pytest

from router.catalog.model_shape import read_shape
from shard.models.shape import read_config, shape_of


def test_it_is_what_the_shard_finds(every_tiny_model: Path) -> None:
    ours, theirs = read_shape(every_tiny_model), shape_of(read_config(every_tiny_model))
    assert (ours.num_layers, ours.hidden_size) == (theirs.num_layers, theirs.hidden_size)
    assert (ours.num_heads, ours.num_kv_heads) == (theirs.heads.query, theirs.heads.kv)
    assert (ours.head_dim, ours.vocab_size) == (theirs.heads.dim, theirs.vocab_size)
    assert ours.max_positions == theirs.max_positions
    assert ours.kv_bytes("bfloat16") == 2 * 2 * theirs.heads.kv * theirs.heads.dim


@pytest.mark.parametrize(
    ("config", "error"),
    [({}, "hidden_size"), ({"hidden_size": 64, "num_attention_heads": 4}, "num_hidden_layers")],
)
def test_what_is_missing_is_named(tmp_path: Path, config: dict[str, Any], error: str) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=rf"config\.json lacks {error}$"):
        read_shape(tmp_path)
