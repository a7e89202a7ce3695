"""What was converted computes the same: the same logits, the same tokens."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging

from shard.fetch.convert import convert_gguf, convert_weights, make_tokenizer
from shard.models.model_folder import ModelUnusable, is_complete
from tests.shard.gguf_files import write_gguf

TEXTS = ["Once upon a time", "a  1 22   3.5", "<|im_start|>user\nthe dog's\n", "größer 🦊 \u200b", ""]


@pytest.fixture(autouse=True)
def quiet():
    logging.disable_progress_bar()


def logits_of(folder):
    model = AutoModelForCausalLM.from_pretrained(folder, dtype="auto")
    with torch.no_grad():
        return model(torch.arange(5, 45)[None]).logits


def encoded(folder):
    tokenizer = AutoTokenizer.from_pretrained(folder)
    return [tokenizer.encode(text) for text in TEXTS]


@pytest.mark.parametrize("shape", ["llama", "qwen2", "qwen3"])
def test_a_gguf_file_becomes_the_model_it_was_made_from(tiny_model, tmp_path, shape):
    original = tiny_model(shape)
    folder = tmp_path / "converted"
    folder.mkdir()
    convert_gguf(write_gguf(original, tmp_path / "model.gguf"), folder)
    assert is_complete(folder)
    torch.testing.assert_close(logits_of(folder), logits_of(original), atol=1e-5, rtol=1e-4)
    assert encoded(folder) == encoded(original)


@pytest.mark.parametrize(
    ("matrices", "kept"),
    [("Q4_1", "float32"), ("Q8_0", "float32"), ("F16", "float16"), ("BF16", "bfloat16"), ("F32", "float32")],
)
def test_a_conversion_loses_nothing(tiny_model, tmp_path, matrices, kept):
    write_gguf(tiny_model("llama"), tmp_path / "model.gguf", matrices=matrices)
    folder = tmp_path / "converted"
    folder.mkdir()
    convert_gguf(tmp_path / "model.gguf", folder)
    held = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="model.gguf", dtype=torch.float32)
    stored = load_file(folder / "model.safetensors")
    for name, tensor in held.state_dict().items():
        if name in stored:
            torch.testing.assert_close(stored[name].float(), tensor, rtol=0, atol=0)
    assert {tensor.dtype for tensor in stored.values() if tensor.ndim > 1} == {getattr(torch, kept)}
    assert {tensor.dtype for tensor in stored.values() if tensor.ndim == 1} == {torch.float32}
    assert json.loads((folder / "config.json").read_text())["dtype"] == kept


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"left_out": "model.layers.3."}, r"model\.gguf lacks the tensor model\.layers\.3\..* and 8 more"),
        ({"left_out": "model.embed_tokens"}, r"model\.gguf lacks the tensor "),
        (
            {"pre_tokenizer": None},
            r"model\.gguf holds no tokenizer \(tokenizer\.ggml\.tokens is missing\)[^(]*$",
        ),
    ],
)
def test_what_lacks_a_part_is_refused_and_never_filled_in(tiny_model, tmp_path, changes, complaint):
    file = write_gguf(tiny_model("llama"), tmp_path / "model.gguf", **changes)
    with pytest.raises(ModelUnusable, match=complaint):
        convert_gguf(file, tmp_path)


@pytest.mark.parametrize(
    ("shape", "added"),
    [
        ("llama", {"blk.1.attn_q.bias": 64}),
        ("llama", {"blk.0.attn_q_norm.weight": 16}),
        ("llama", {"blk.4.attn_norm.weight": 64}),
        ("llama", {"blk.0.ffn_gate_inp.weight": 64}),
        ("llama", {"nonsense.weight": 64}),
        ("qwen2", {"blk.0.attn_output.bias": 64}),
        ("qwen3", {"blk.0.attn_k.bias": 64}),
    ],
)
def test_a_tensor_that_no_part_of_the_model_takes_is_refused_and_never_dropped(
    tiny_model, tmp_path, shape, added
):
    file = write_gguf(tiny_model(shape), tmp_path / "model.gguf", added=added)
    with pytest.raises(
        ModelUnusable, match=rf"model\.gguf holds the tensor {next(iter(added))}, which a {shape}"
    ):
        convert_gguf(file, tmp_path)


@pytest.mark.parametrize("shape", ["llama", "qwen2", "qwen3"])
def test_heads_that_are_rotated_in_part_are_refused(tiny_model, tmp_path, shape):
    file = write_gguf(tiny_model(shape), tmp_path / "model.gguf", rope_dims=8)
    with pytest.raises(ModelUnusable, match=r"model\.gguf: \w+\.rope\.dimension_count is 8, and only all"):
        convert_gguf(file, tmp_path)


@pytest.mark.parametrize("name", ["deepseek-llm", "command-r", "refact", "nonsense"])
def test_a_way_to_split_text_that_is_not_known_is_refused_by_name(tiny_model, tmp_path, name):
    file = write_gguf(tiny_model("llama"), tmp_path / "model.gguf", name)
    with pytest.raises(ModelUnusable, match=rf"tokenizer\.ggml\.pre is '{name}'"):
        convert_gguf(file, tmp_path)


@pytest.mark.parametrize(
    ("name", "pieces"),
    [
        ("default", ["I", "'", "VE", "Ġ12345", "Ġ", "Ġb"]),
        ("gpt-2", ["I", "'", "VE", "Ġ12345", "Ġ", "Ġb"]),
        ("smollm", ["I", "'", "VE", "Ġ", "1", "2", "3", "4", "5", "Ġ", "Ġb"]),
        ("llama-bpe", ["I", "'VE", "Ġ", "123", "45", "Ġ", "Ġb"]),
        ("qwen2", ["I", "'VE", "Ġ", "1", "2", "3", "4", "5", "Ġ", "Ġb"]),
    ],
)
def test_text_is_split_as_the_file_says(tiny_model, tmp_path, name, pieces):
    convert_gguf(write_gguf(tiny_model("llama"), tmp_path / "model.gguf", name), tmp_path)
    backend = AutoTokenizer.from_pretrained(tmp_path).backend_tokenizer
    assert [piece for piece, _ in backend.pre_tokenizer.pre_tokenize_str("I'VE 12345  b")] == pieces


@pytest.mark.parametrize("family", ["mistral", "opt"])
def test_an_architecture_that_is_none_of_gguf_files_is_one_sentence(tiny_model, tmp_path, family):
    file = write_gguf(tiny_model("llama"), tmp_path / "model.gguf", architecture=family)
    with pytest.raises(ModelUnusable, match=r"model\.gguf (is of architecture 'mistral'|describes no model)"):
        convert_gguf(file, tmp_path)


def test_a_converted_model_keeps_its_limits_ends_and_chat_template(tiny_model, tmp_path):
    original = AutoTokenizer.from_pretrained(tiny_model("llama"))
    convert_gguf(write_gguf(tiny_model("llama"), tmp_path / "model.gguf"), tmp_path)
    config = AutoModelForCausalLM.from_pretrained(tmp_path).config
    converted = AutoTokenizer.from_pretrained(tmp_path)
    assert config.architectures == ["LlamaForCausalLM"]
    assert (config.max_position_embeddings, converted.model_max_length) == (256, 256)
    assert (config.eos_token_id, converted.eos_token) == (original.eos_token_id, "<|im_end|>")
    chat = [{"role": "user", "content": "hi"}]
    assert converted.apply_chat_template(chat, tokenize=False) == original.apply_chat_template(
        chat, tokenize=False
    )


def test_digits_stand_alone_in_smollm_files(tiny_model, tmp_path):
    convert_gguf(write_gguf(tiny_model("llama"), tmp_path / "model.gguf", "smollm"), tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    assert tokenizer.backend_tokenizer.pre_tokenizer.pre_tokenize_str("a  12") == [
        ("a", (0, 1)),
        ("ĠĠ", (1, 3)),
        ("1", (3, 4)),
        ("2", (4, 5)),
    ]


def test_a_damaged_gguf_file_is_one_sentence(tmp_path):
    damaged = tmp_path / "damaged.gguf"
    damaged.write_bytes(b"GGUF" + bytes(100))
    with pytest.raises(ModelUnusable, match=r"damaged\.gguf is not a readable GGUF file"):
        convert_gguf(damaged, tmp_path)


def test_positions_scaled_in_a_way_that_would_be_lost_are_refused(tiny_model, tmp_path):
    file = write_gguf(tiny_model("llama"), tmp_path / "model.gguf", rope_scaling="yarn")
    with pytest.raises(ModelUnusable, match="scales its positions"):
        convert_gguf(file, tmp_path)


def test_old_weight_files_become_safetensors(tiny_model, tmp_path):
    source, folder = tmp_path / "source", tmp_path / "converted"
    shutil.copytree(tiny_model("opt"), source)
    folder.mkdir()
    model = AutoModelForCausalLM.from_pretrained(source)
    torch.save(model.state_dict(), source / "pytorch_model.bin")
    (source / "model.safetensors").unlink()
    convert_weights(source, folder)
    torch.testing.assert_close(logits_of(folder), logits_of(tiny_model("opt")))


def test_a_slow_tokenizers_files_become_tokenizer_json(tiny_model, tmp_path):
    source, folder = tmp_path / "source", tmp_path / "made"
    folder.mkdir()
    write_slow_tokenizer(tiny_model("gpt2"), source)
    make_tokenizer(source, folder)
    made = AutoTokenizer.from_pretrained(folder)
    original = AutoTokenizer.from_pretrained(tiny_model("gpt2"))
    assert [made.encode(text) for text in TEXTS] == [original.encode(text) for text in TEXTS]


def write_slow_tokenizer(model, folder):
    """The files that GPT-2 and OPT models had before tokenizer.json."""
    folder.mkdir(exist_ok=True)
    tokenizer = json.loads((model / "tokenizer.json").read_text())
    (folder / "vocab.json").write_text(json.dumps(tokenizer["model"]["vocab"]))
    merges = "\n".join(" ".join(merge) for merge in tokenizer["model"]["merges"])
    (folder / "merges.txt").write_text(f"#version: 0.2\n{merges}\n")
    settings = json.loads((model / "tokenizer_config.json").read_text())
    added = {str(token.pop("id")): token for token in tokenizer["added_tokens"]}
    settings |= {"tokenizer_class": "GPT2Tokenizer", "added_tokens_decoder": added}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    shutil.copy(model / "config.json", folder)


def test_old_weight_files_that_lack_a_layer_are_refused(tiny_model, tmp_path):
    source = tmp_path / "source"
    shutil.copytree(tiny_model("opt"), source)
    state = AutoModelForCausalLM.from_pretrained(source).state_dict()
    last = {name for name in state if ".layers.3." in name}
    torch.save(
        {name: tensor for name, tensor in state.items() if name not in last}, source / "pytorch_model.bin"
    )
    (source / "model.safetensors").unlink()
    with pytest.raises(ModelUnusable, match=r"source lacks the tensor model\.decoder\.layers\.3"):
        convert_weights(source, tmp_path)


def test_no_tokenizer_at_all_is_one_sentence(tiny_model, tmp_path):
    shutil.copy(tiny_model("gpt2") / "config.json", tmp_path)
    with pytest.raises(ModelUnusable, match="holds no tokenizer"):
        make_tokenizer(tmp_path, tmp_path / "made")
