"""Files of a model folder that say nothing usable: each ends in one sentence that names file and key."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from router.catalog.model_shape import read_shape
from router.text.tokenizer import Tokenizer
from router.text.tokenizer_files import TokenizerUnreadable
from shard.fetch.resolve import resolve
from shard.models.checkpoint import CheckpointError
from shard.models.model_folder import ModelUnusable
from shard.models.shape import UnsupportedModelError
from tests.shard.driving import make_runner

NO_OBJECTS = [b"", b"\xff\xfe{}", b"[]", b"null", b'{"a"', b"\xef\xbb\xbf{}", b"[" * 100_000]
REFUSALS = (ModelUnusable, UnsupportedModelError, CheckpointError, TokenizerUnreadable)


@pytest.fixture
def folder(tiny_model: Callable[[str], Path], tmp_path: Path) -> Path:
    return shutil.copytree(tiny_model("llama"), tmp_path / "model")


def refusal(folder: Path) -> str:
    """The sentence that ends `helios serve`, by the steps that it takes."""
    with pytest.raises(REFUSALS) as caught:
        resolved = resolve(str(folder), None, folder.parent / "cache")
        Tokenizer.load(resolved)
        make_runner(resolved)
    sentence = str(caught.value)
    assert "\n" not in sentence
    return sentence


def change(folder: Path, **values: Any) -> None:
    described = json.loads((folder / "config.json").read_text()) | values
    (folder / "config.json").write_text(json.dumps(described))


@pytest.mark.parametrize("content", NO_OBJECTS, ids=lambda content: repr(content[:8]))
@pytest.mark.parametrize(
    "name",
    [
        "config.json",
        "generation_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "special_tokens_map.json",
        "added_tokens.json",
        "model.safetensors.index.json",
    ],
)
def test_a_file_that_is_no_object_is_named(folder: Path, name: str, content: bytes) -> None:
    (folder / name).write_bytes(content)
    if name == "model.safetensors.index.json":
        (folder / "model.safetensors").unlink()
    if name in (
        "special_tokens_map.json",
        "added_tokens.json",
    ):  # read where there is no added_tokens_decoder
        assert "added_tokens_decoder" not in json.loads((folder / "tokenizer_config.json").read_text())
    assert str(folder / name) in refusal(folder)


@pytest.mark.parametrize("value", [0, -1, 10**12, 2.5, "4", True, None])
@pytest.mark.parametrize(
    "key",
    ["num_hidden_layers", "hidden_size", "num_attention_heads", "intermediate_size", "vocab_size"],
)
def test_a_size_that_no_model_has_is_named(folder: Path, key: str, value: Any) -> None:
    change(folder, **{key: value})
    assert f"{folder}/config.json: {key} is {value!r}, not a whole number from 1 to" in refusal(folder)
    if value != 10**12 and key != "intermediate_size":  # which a router does not ask for
        with pytest.raises(ValueError, match=rf"config\.json(: {key} is| lacks {key})"):
            read_shape(folder)


@pytest.mark.parametrize(
    ("key", "value", "complaint"),
    [
        ("max_position_embeddings", 0, "max_position_embeddings is 0"),
        ("head_dim", 0, "head_dim is 0"),
        ("num_key_value_heads", 3, "num_key_value_heads is 3, which does not divide"),
        ("num_key_value_heads", 0, "num_key_value_heads is 0"),
        ("hidden_size", 65, r"hidden size \(65\) is not a multiple"),
        ("rms_norm_eps", float("nan"), "rms_norm_eps is nan, which is no number"),
        ("rope_parameters", {"rope_type": "default", "rope_theta": 0}, "rope_theta is 0, by which nothing"),
        ("rope_parameters", {"rope_type": "default", "rope_theta": float("inf")}, "rope_theta is inf"),
        ("rope_parameters", {"rope_type": "other"}, "rope_type 'other' is not supported"),
        ("architectures", "LlamaForCausalLM", "architectures is 'LlamaForCausalLM', not a list"),
        ("architectures", 5, "architectures is 5, not a list"),
        ("hidden_act", "gelu", "hidden_act 'gelu' is not supported"),
        ("quantization_config", 5, "quantization_config with quant_method 5"),
        (
            "quantization_config",
            {"quant_method": "fp8", "weight_block_size": [1, 2, 3]},
            r"weight_block_size is \[1, 2, 3\]",
        ),
        ("model_type", ["llama"], "architecture"),
    ],
)
def test_a_key_that_says_nothing_usable_is_named(folder: Path, key: str, value: Any, complaint: str) -> None:
    change(folder, **{key: value})
    said = refusal(folder)
    assert str(folder) in said
    assert re.search(complaint, said)


def test_of_two_values_of_a_key_the_last_counts_as_in_transformers(folder: Path) -> None:
    text = (folder / "config.json").read_text().rstrip().removesuffix("}").rstrip()
    (folder / "config.json").write_text(text + ', "num_hidden_layers": 3}')
    assert read_shape(folder).num_layers == 3
    assert "'model.layers.3.input_layernorm.weight'" in refusal(folder)


@pytest.mark.parametrize("ids", ["2", [2, "x"], {"a": 1}, True, 1.5, float("nan"), [[2]]])
def test_end_tokens_that_are_no_ids_are_named(folder: Path, ids: Any) -> None:
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": ids}))
    assert f"{folder / 'generation_config.json'}: eos_token_id is" in refusal(folder)


@pytest.mark.parametrize("name", ["../model.safetensors", "/etc/passwd", "other/model.safetensors"])
def test_an_index_names_files_of_its_folder(folder: Path, name: str) -> None:
    (folder / "model.safetensors").unlink()
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": name}}))
    assert f"{index}: weight_map names {name!r}" in refusal(folder)
    index.write_text(json.dumps({"weight_map": {"a": "gone.safetensors"}}))
    assert "gone.safetensors is missing" in refusal(folder)


@pytest.mark.parametrize("size", [0, 4, 100, -10])
def test_weights_that_are_cut_off_are_named(folder: Path, size: int) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:size])
    assert f"{file} is damaged" in refusal(folder)
