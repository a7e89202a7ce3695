"""What a checkpoint folder says is served, or it is refused in one sentence that names file and key."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from shard.models.checkpoint import CheckpointError
from shard.models.model_folder import ModelUnusable, check_config, has_weights, unread_weights, weight_files
from shard.models.shape import UnsupportedModelError, eos_token_ids, read_config
from tests.shard.driving import DEVICE, generate, make_runner

PROMPT = [5, 6, 7, 8]
MIXED = ["full_attention", "full_attention", "sliding_attention", "sliding_attention"]
COMPRESSED_BLOCKS = {
    "quant_method": "compressed-tensors",
    "format": "float-quantized",
    "config_groups": {"group_0": {"weights": {"strategy": "block", "block_structure": [16, 16]}}},
}
Tensors = dict[str, torch.Tensor]


@pytest.fixture
def changed(tiny_model, tmp_path: Path) -> Callable[..., Path]:
    """`changed("qwen2", config={...}, weights=function)` is a copy of a small model that differs so."""

    def make(shape: str, config: dict | None = None, weights: Callable[[Tensors], Tensors] | None = None):
        folder = tmp_path / "changed"
        shutil.copytree(tiny_model(shape), folder)
        if config:
            described = json.loads((folder / "config.json").read_text())
            (folder / "config.json").write_text(json.dumps(described | config))
        if weights:
            tensors = weights(load_file(folder / "model.safetensors"))
            save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        return folder

    return make


def reference(folder: Path) -> list[int]:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    ids = model.generate(
        torch.tensor([PROMPT]), max_new_tokens=12, min_new_tokens=12, do_sample=False, eos_token_id=None
    )
    return ids[0, len(PROMPT) :].tolist()


def served(folder: Path) -> list[int]:
    return generate(make_runner(folder), [PROMPT], 12)[0].ids


def other_head(tensors: Tensors) -> Tensors:
    draw = torch.Generator().manual_seed(1)
    shape = tensors["model.embed_tokens.weight"].shape
    return tensors | {"lm_head.weight": torch.randn(shape, generator=draw)}


def test_a_head_in_the_file_is_the_head_though_the_config_says_tied(changed, tiny_model):
    folder = changed("llama", weights=other_head)
    assert served(folder) == reference(folder) != served(tiny_model("llama"))


def test_a_head_that_is_the_embedding_once_more_takes_no_memory(changed, tiny_model):
    folder = changed(
        "llama",
        weights=lambda tensors: tensors | {"lm_head.weight": tensors["model.embed_tokens.weight"].clone()},
    )
    runner, tied = make_runner(folder), make_runner(tiny_model("llama"))
    assert runner.model.weight_bytes == tied.model.weight_bytes
    assert served(folder) == served(tiny_model("llama"))


def test_no_head_where_the_config_says_that_there_is_one(changed):
    folder = changed("llama", config={"tie_word_embeddings": False})
    with pytest.raises(CheckpointError, match=r"'lm_head.weight' is missing.*tie_word_embeddings false"):
        make_runner(folder)


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3", "mistral", "opt", "gpt2"])
def test_every_family_accounts_for_all_of_its_tensors(changed, family):
    folder = changed(family, weights=lambda tensors: tensors | {"model.layers.9.extra.weight": torch.ones(3)})
    with pytest.raises(CheckpointError, match=r"'model.layers.9.extra.weight' is in .*does not account"):
        make_runner(folder)


@pytest.mark.parametrize(
    ("shape", "config", "complaint"),
    [
        ("llama", {"num_key_value_heads": 4}, r"k_proj.weight' has shape \(32, 64\), not \(64, 64\)"),
        ("llama", {"num_hidden_layers": 3}, r"'model.layers.3.*does not account"),
        ("llama", {"num_hidden_layers": 5}, r"'model.layers.4.* is missing"),
        ("llama", {"attention_bias": True}, r"q_proj.bias' is missing"),
        ("llama", {"mlp_bias": True}, r"gate_proj.bias' is missing"),
        ("llama", {"intermediate_size": 128}, r"has shape \(96, 64\), not \(128, 64\)"),
        ("llama", {"vocab_size": 9000}, r"embed_tokens.weight' has shape"),
        ("llama3-rope", {"attention_bias": False}, r"bias' is in .*does not account"),
        ("qwen3", {"head_dim": 16}, r"has shape"),
        ("opt", {"ffn_dim": 128}, r"fc1.weight' has shape \(96, 64\), not \(128, 64\)"),
        ("gpt2", {"n_positions": 128}, r"wpe.weight' has shape \(256, 64\), not \(128, 64\)"),
    ],
)
def test_weights_that_do_not_fit_their_config_are_named(changed, shape, config, complaint):
    with pytest.raises(CheckpointError, match=complaint):
        make_runner(changed(shape, config=config), num_layers=2)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("name", ["model.norm.weight", "model.layers.2.mlp.down_proj.weight"])
def test_numbers_that_are_none_are_refused(changed, name, value):
    def spoil(tensors: Tensors) -> Tensors:
        tensors[name].view(-1)[0] = value
        return tensors

    with pytest.raises(CheckpointError, match=f"'{name}|'{name.removeprefix('model.')}"):
        make_runner(changed("llama", weights=spoil))


def to_float8(tensors: Tensors, scale_name: str, block: int | None, per_row: bool) -> Tensors:
    """Every projection in 8-bit floats with a scale for all of it, for each row, or for each block."""
    made: Tensors = {}
    for name, tensor in tensors.items():
        if not name.endswith("_proj.weight"):
            made[name] = tensor
            continue
        rows, columns = tensor.shape
        if block is not None:
            padded = torch.nn.functional.pad(tensor, (0, -columns % block, 0, -rows % block))
            scale = padded.unfold(0, block, block).unfold(1, block, block).abs().amax((2, 3)) / 448
            wide = scale.repeat_interleave(block, 0)[:rows].repeat_interleave(block, 1)[:, :columns]
        elif per_row:
            wide = scale = tensor.abs().amax(1, keepdim=True) / 448
        else:
            wide = scale = tensor.abs().amax() / 448
        made[name] = (tensor / wide).to(torch.float8_e4m3fn)
        made[name.replace(".weight", scale_name)] = scale
    return made


@pytest.mark.parametrize(
    ("quantization", "scale_name", "block", "per_row"),
    [
        ({"quant_method": "fp8", "weight_block_size": [16, 16]}, ".weight_scale_inv", 16, False),
        ({"quant_method": "fbgemm_fp8"}, ".weight_scale", None, True),
        ({"quant_method": "compressed-tensors", "format": "float-quantized"}, ".weight_scale", None, False),
        (COMPRESSED_BLOCKS, ".weight_scale", 16, False),
    ],
)
def test_8_bit_floats_are_served_by_their_scales(
    changed, tiny_model, quantization, scale_name, block, per_row
):
    original = load_file(tiny_model("llama") / "model.safetensors")
    made = to_float8(dict(original), scale_name, block, per_row)
    folder = changed("llama", {"quantization_config": quantization}, lambda _: made)
    weights = make_runner(folder).decoder.layers[0]
    expected = make_runner(tiny_model("llama")).decoder.layers[0]
    hidden = torch.randn(3, 64, generator=torch.Generator().manual_seed(0)).to(DEVICE)
    with torch.inference_mode():
        torch.testing.assert_close(weights.qkv(hidden), expected.qkv(hidden), atol=0.6, rtol=0.1)
        assert not torch.equal(weights.qkv(hidden), expected.qkv(hidden))


@pytest.mark.parametrize("block", [16, 40, 48, 80])
def test_blocks_of_8_bit_floats_may_end_in_the_middle_of_one(changed, tiny_model, block):
    """Sizes that do not divide matrices of (96, 64) and (64, 96), whose rows differ much in scale."""
    draw = torch.logspace(0, 2, 96)
    original = {
        name: tensor * draw[: len(tensor), None] if name.endswith("_proj.weight") else tensor
        for name, tensor in load_file(tiny_model("llama") / "model.safetensors").items()
    }
    quantization = {"quant_method": "fp8", "weight_block_size": [block, block]}
    made = to_float8(original, ".weight_scale_inv", block, False)
    folder = changed("llama", {"quantization_config": quantization}, lambda _: made)
    layer = make_runner(folder).decoder.layers[0]
    hidden = torch.randn(3, 96, generator=torch.Generator().manual_seed(0)).to(DEVICE)
    for linear, names in (
        (layer.gate_up, ("gate_proj", "up_proj")),
        (layer.down, ("down_proj",)),
    ):
        weight = torch.cat([original[f"model.layers.0.mlp.{name}.weight"] for name in names]).to(DEVICE)
        given = hidden[:, : weight.shape[1]]
        with torch.inference_mode():
            difference = linear(given) - given @ weight.T
        assert difference.norm(dim=0).max() < 0.05 * (given @ weight.T).norm(dim=0).max()


@pytest.mark.parametrize(
    ("quantization", "complaint"),
    [
        ({"quant_method": "fp8"}, r"_scale_inv' has shape \(4, 4\), not \(1, 1\) as blocks of 128 x 128"),
        ({"quant_method": "fp8", "weight_block_size": [32, 16]}, r"not \(2, 4\) as blocks of 32 x 16"),
        ({"quant_method": "fp8", "weight_block_size": None}, r"not \(64, 1\): config.json names no block"),
        ({"quant_method": "fbgemm_fp8"}, r"config.json names no block size"),
        ({"quant_method": "fp8", "weight_block_size": [16]}, r"config.json: weight_block_size is \[16\]"),
        (
            {"quant_method": "fp8", "weight_block_size": [0, 16]},
            r"config.json: weight_block_size is \[0, 16\]",
        ),
    ],
)
def test_scales_that_do_not_fit_the_block_size_are_refused(changed, quantization, complaint):
    folder = changed(
        "llama",
        {"quantization_config": quantization},
        lambda tensors: to_float8(tensors, ".weight_scale_inv", 16, False),
    )
    with pytest.raises((CheckpointError, UnsupportedModelError), match=complaint):
        make_runner(folder)


def test_a_scale_beside_a_matrix_that_is_not_of_8_bits_is_refused(changed):
    def add(tensors: Tensors) -> Tensors:
        name = "model.layers.0.self_attn.q_proj.weight"
        return tensors | {name + "_scale": torch.full((64, 1), 2.0)}

    folder = changed("llama", {"quantization_config": {"quant_method": "fbgemm_fp8"}}, add)
    with pytest.raises(CheckpointError, match=r"q_proj.weight' is not of 8 bits, and has a scale beside it"):
        make_runner(folder)


def test_scales_that_no_quantization_config_speaks_of_are_refused(changed):
    def quantised(tensors: Tensors) -> Tensors:
        return to_float8(tensors, ".weight_scale", None, True)

    with pytest.raises(CheckpointError, match=r"weight_scale' is in .*has no quantization_config"):
        make_runner(changed("llama", weights=quantised))


def test_8_bit_floats_without_a_scale_are_refused(changed):
    def drop(tensors: Tensors) -> Tensors:
        made = to_float8(tensors, ".weight_scale", None, False)
        return {name: tensor for name, tensor in made.items() if not name.endswith("_scale")}

    folder = changed("llama", {"quantization_config": {"quant_method": "fp8"}}, drop)
    with pytest.raises(CheckpointError, match=r"q_proj.weight' is of 8-bit floats and has no scale"):
        make_runner(folder)


@pytest.mark.parametrize(
    ("config", "complaint"),
    [
        (
            {"quantization_config": {"quant_method": "bitsandbytes"}},
            "config.json.*bitsandbytes",
        ),
        ({"quantization_config": {"quant_method": "gptq"}}, "gptq"),
        (
            {"quantization_config": {"quant_method": "compressed-tensors", "format": "pack-quantized"}},
            "8-bit",
        ),
        (
            {"architectures": ["LlamaForSequenceClassification"]},
            "architectures names LlamaForS",
        ),
    ],
)
def test_what_a_config_says_and_nobody_serves_is_refused_by_name(changed, config, complaint):
    folder = changed("llama", config)
    with pytest.raises(ModelUnusable, match=complaint):
        check_config(json.loads((folder / "config.json").read_text()), str(folder))
    with pytest.raises(UnsupportedModelError, match=complaint):
        make_runner(folder)


@pytest.mark.parametrize(
    ("shape", "config", "complaint"),
    [
        ("opt", {"_remove_final_layer_norm": True}, "_remove_final_layer_norm"),
        ("opt", {"enable_bias": False}, "enable_bias"),
        ("opt", {"layer_norm_elementwise_affine": False}, "layer_norm_elementwise_affine"),
        ("gpt2", {"add_cross_attention": True}, "add_cross_attention"),
        ("gpt2", {"scale_attn_by_inverse_layer_idx": True}, "attention scaling"),
        ("gpt2", {"scale_attn_weights": False}, "attention scaling"),
        (
            "qwen2",
            {"use_sliding_window": True, "sliding_window": 8, "layer_types": MIXED},
            "some layers only",
        ),
    ],
)
def test_variants_without_a_decoder_are_refused(changed, shape, config, complaint):
    with pytest.raises(UnsupportedModelError, match=complaint):
        make_runner(changed(shape, config))


def test_of_two_files_that_is_read_which_transformers_reads(changed, tmp_path):
    folder = changed("llama")
    other = {name: tensor * 0.5 for name, tensor in load_file(folder / "model.safetensors").items()}
    save_file(other, folder / "consolidated.safetensors", metadata={"format": "pt"})
    save_file(other, folder / "model-00001-of-00001.safetensors", metadata={"format": "pt"})
    index = {"metadata": {}, "weight_map": dict.fromkeys(other, "model-00001-of-00001.safetensors")}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert [path.name for path in weight_files(folder)] == ["model.safetensors"]
    assert served(folder) == reference(folder)
    assert unread_weights(folder) == ["consolidated.safetensors", "model-00001-of-00001.safetensors"]
    assert "consolidated.safetensors" in make_runner(folder).ready().warnings[0]
    (folder / "model.safetensors").unlink()
    assert [path.name for path in weight_files(folder)] == ["model-00001-of-00001.safetensors"]
    (folder / "model.safetensors.index.json").unlink()
    assert not has_weights(folder)


@pytest.mark.parametrize("text", ["{", "[]", '{"weight_map": 3}', '{"weight_map": {"a": 1}}'])
def test_a_broken_index_is_one_sentence_with_its_name(changed, text):
    folder = changed("llama")
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(text)
    with pytest.raises(ModelUnusable, match=r"model\.safetensors\.index\.json"):
        has_weights(folder)


def test_a_base_model_is_read_without_its_prefix(changed, tiny_model):
    folder = changed(
        "llama",
        weights=lambda tensors: {name.removeprefix("model."): tensor for name, tensor in tensors.items()},
    )
    assert served(folder) == served(tiny_model("llama"))


@pytest.mark.parametrize(
    ("config", "generation", "tokenizer", "expected"),
    [
        ({"eos_token_id": 7}, None, None, [7]),
        ({"eos_token_id": 7}, {"eos_token_id": [8, 9]}, None, [8, 9]),
        ({"eos_token_id": None}, None, "<|im_end|>", [2]),
        ({"eos_token_id": 7}, None, {"content": "<|im_end|>"}, [7, 2]),
        ({"eos_token_id": 2}, None, "<|im_end|>", [2]),
        ({"eos_token_id": None}, None, "<far>", [400]),
        ({"eos_token_id": None}, None, "<nowhere>", []),
    ],
)
def test_an_answer_ends_at_what_any_file_names(changed, config, generation, tokenizer, expected):
    folder = changed("llama", config)
    (folder / "generation_config.json").unlink(missing_ok=True)
    if generation is not None:
        (folder / "generation_config.json").write_text(json.dumps(generation))
    described = json.loads((folder / "tokenizer_config.json").read_text())
    described |= {"eos_token": tokenizer, "added_tokens_decoder": {"400": {"content": "<far>"}}}
    (folder / "tokenizer_config.json").write_text(json.dumps(described))
    assert eos_token_ids(folder, read_config(folder)) == expected


def test_what_only_others_would_read_is_refused(changed) -> None:
    folder = changed("llama")
    (folder / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    with pytest.raises(UnsupportedModelError, match=r"adapter_config\.json.*: merge it into the weights"):
        make_runner(folder)
    (folder / "adapter_config.json").unlink()
    described = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(described | {"transformers_weights": "other.safetensors"}))
    with pytest.raises(UnsupportedModelError, match=r"transformers_weights names 'other\.safetensors'"):
        make_runner(folder)
