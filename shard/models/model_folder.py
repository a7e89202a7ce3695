"""Checks by its files alone that a model folder can be served; imports nothing heavy.

A complete folder has config.json of a supported family, tokenizer.json and safetensors weights.
"""

import json
import math
from pathlib import Path
from typing import Any

SINGLE_FILE = "model.safetensors"
INDEX = "model.safetensors.index.json"
ADAPTER = "adapter_config.json"
QUANTIZATIONS = ("fp8", "fbgemm_fp8", "compressed-tensors")  # dequantised when loaded
_LANGUAGE_MODELS = (
    *("ForCausalLM", "LMHeadModel"),
    *("LlamaModel", "MistralModel", "Qwen2Model", "Qwen3Model", "OPTModel", "GPT2Model"),  # without a head
)
RANDOM_MARK = "random_weights.json"  # replaces weights: they are drawn when loaded
FAMILIES = ("llama", "mistral", "qwen2", "qwen3", "opt", "gpt2")
_MAX_LAYERS = 1000  # more would take minutes before anything is said
_MAX_SIZE = 2**31 - 1
_LAYERS = ("num_hidden_layers", "n_layer")
_SIZES = (
    *("hidden_size", "n_embd", "word_embed_proj_dim", "intermediate_size", "ffn_dim", "n_inner", "head_dim"),
    *("num_attention_heads", "n_head", "num_key_value_heads"),
    *("vocab_size", "max_position_embeddings", "n_positions"),
)
_MAY_BE_NULL = ("n_inner", "head_dim", "num_key_value_heads")


class ModelUnusable(ValueError):
    """The named model cannot be served. The message is one sentence with what to do."""


def is_complete(folder: Path) -> bool:
    """True if a shard and a router can load the folder as it is. Does not check the family."""
    return (
        (folder / "config.json").is_file() and (folder / "tokenizer.json").is_file() and has_weights(folder)
    )


def has_weights(folder: Path) -> bool:
    """True when the folder holds safetensors, and all of them if an index names them."""
    if (folder / RANDOM_MARK).is_file():
        return True
    files = weight_files(folder)
    return bool(files) and all(file.is_file() for file in files)


def weight_files(folder: Path) -> list[Path]:
    """The files that transformers would read: model.safetensors, else those that the index names.

    Empty without either. Raises `ModelUnusable` for an invalid index.
    """
    if (folder / SINGLE_FILE).is_file():
        return [folder / SINGLE_FILE]
    index = folder / INDEX
    if not index.is_file():
        return []
    described = read_json(index)
    names = described.get("weight_map")
    if not isinstance(names, dict) or not all(isinstance(name, str) for name in names.values()):
        raise ModelUnusable(f"{index} has no weight_map from tensors to files: fetch the model again.")
    files = sorted(set(names.values()))
    if away := next((name for name in files if Path(name).name != name), None):
        raise ModelUnusable(f"{index}: weight_map names {away!r}, which is no file of the folder's own.")
    return [folder / name for name in files]


def unread_weights(folder: Path) -> list[str]:
    """Names of safetensors in a folder that are not part of the served model."""
    read = {file.name for file in weight_files(folder)}
    return sorted(file.name for file in folder.glob("*.safetensors") if file.name not in read)


def read_config(folder: Path) -> dict[str, Any]:
    """The folder's config.json. Raises `ModelUnusable` when it is missing or not a JSON object, or when an
    adapter lies beside it, which transformers would add to the weights."""
    path = folder / "config.json"
    if (folder / ADAPTER).exists():
        raise ModelUnusable(
            f"{folder} holds an adapter ({ADAPTER}), which is not supported: merge it into the weights, or "
            "take the file away to serve the model without it."
        )
    if not path.exists():
        raise ModelUnusable(
            f"{folder} has no config.json: name a folder that holds a model in Hugging Face layout "
            "(config.json, tokenizer.json, *.safetensors) or a .gguf file."
        )
    return read_json(path)


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object in a file. Raises `ModelUnusable` with one sentence that names the file."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ModelUnusable(f"{path} cannot be read ({error.strerror}).") from None
    except (ValueError, RecursionError) as error:
        raise ModelUnusable(f"{path} is not valid JSON ({error}): fetch the model again.") from None
    if not isinstance(value, dict):
        raise ModelUnusable(f"{path} is not a JSON object: fetch the model again.")
    return value


def check_config(config: dict[str, Any], name: str) -> None:
    """Raises `ModelUnusable` unless a config.json describes a supported language model."""
    check_family(str(config.get("model_type", "")), name)
    _check_numbers(config, f"{name}/config.json")
    architectures = config.get("architectures") or []
    if not isinstance(architectures, list):
        raise ModelUnusable(f"{name}/config.json: architectures is {architectures!r}, not a list of names.")
    for architecture in architectures:
        if not str(architecture).endswith(_LANGUAGE_MODELS):
            raise ModelUnusable(
                f"{name}/config.json: architectures names {architecture}, which is no model that generates "
                "text: serve a ...ForCausalLM."
            )
    if other := config.get("transformers_weights"):
        raise ModelUnusable(
            f"{name}/config.json: transformers_weights names {other!r}, which is not supported: "
            f"give that file the name {SINGLE_FILE} and take the key out."
        )
    quantization = config.get("quantization_config")
    if quantization is not None:
        method = quantization.get("quant_method") if isinstance(quantization, dict) else quantization
        if method not in QUANTIZATIONS or not _is_float8(quantization):
            raise ModelUnusable(
                f"{name}/config.json: quantization_config with quant_method {method!r} is not supported: "
                f"serve the model unquantised, or quantised to 8-bit floats by {', '.join(QUANTIZATIONS)}."
            )


def _check_numbers(config: dict[str, Any], path: str) -> None:
    """Raises `ModelUnusable` for sizes that no model has, and for numbers that are none."""
    for names, bound in ((_LAYERS, _MAX_LAYERS), (_SIZES, _MAX_SIZE)):
        for key in config.keys() & {*names}:
            value = config[key]
            if value is None and key in _MAY_BE_NULL:
                continue
            if type(value) is not int or not 1 <= value <= bound:
                raise ModelUnusable(f"{path}: {key} is {value!r}, not a whole number from 1 to {bound}.")
    heads, kv_heads = config.get("num_attention_heads"), config.get("num_key_value_heads")
    if heads and kv_heads and heads % kv_heads:
        raise ModelUnusable(
            f"{path}: num_key_value_heads is {kv_heads}, which does not divide num_attention_heads, {heads}."
        )
    rope = {**_object(config.get("rope_parameters")), **_object(config.get("rope_scaling"))}
    for key, value in (*config.items(), *rope.items()):
        if isinstance(value, float) and not math.isfinite(value):
            raise ModelUnusable(f"{path}: {key} is {value}, which is no number.")


def _object(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def scale_block(quantization: dict[str, Any] | None) -> tuple[int, int] | None:
    """Rows and columns of the blocks that share one scale; None if rows or whole matrices do.

    Raises `ModelUnusable` for invalid block sizes.
    """
    described = quantization or {}
    if described.get("quant_method") == "fp8":
        key, sizes = "weight_block_size", [described.get("weight_block_size", [128, 128])]
    else:
        key = "block_structure"
        groups = described.get("config_groups")
        weights = (
            [_object(_object(group).get("weights")) for group in groups.values()]
            if isinstance(groups, dict)
            else []
        )
        sizes = [weight.get(key) for weight in weights] or [None]
    if all(size is None for size in sizes):
        return None
    block = sizes[0]
    if not isinstance(block, list) or [type(size) for size in block] != [int, int] or min(block) < 1:
        raise ModelUnusable(f"{key} is {block!r} in quantization_config, not two sizes from 1 up.")
    if any(size != block for size in sizes):
        raise ModelUnusable(f"{key} differs between groups of quantization_config, which is not supported.")
    return block[0], block[1]


def _is_float8(quantization: dict[str, Any]) -> bool:
    """True for 8-bit floats, one of compressed-tensors' many formats."""
    has_formats = quantization["quant_method"] == "compressed-tensors"
    return not has_formats or quantization.get("format") == "float-quantized"


def check_family(family: str, name: str) -> None:
    """Raises `ModelUnusable` unless a decoder for this `model_type` (or GGUF architecture) exists here."""
    if family not in FAMILIES:
        raise ModelUnusable(
            f"{name} is of architecture {family or 'unknown'!r}, which is not supported: "
            f"choose a model of {', '.join(FAMILIES[:-1])} or {FAMILIES[-1]} (SmolLM models are llama)."
        )
