"""A model's shape, read from its Hugging Face config."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
from tokenizers import Tokenizer

from shard.models import model_folder
from shard.models.model_folder import ModelUnusable, check_config
from shard.ops.batch import Heads
from shard.temporary import name_temporary_folder

GPT_LIKE = ("opt", "gpt2")


class UnsupportedModelError(ValueError):
    """Helios has no decoder for this kind of checkpoint; the message lists the supported ones."""


class Shape(msgspec.Struct, frozen=True):
    """Sizes and constants of one decoder-only model."""

    family: str
    vocab_size: int
    hidden_size: int
    num_layers: int
    heads: Heads
    norm_eps: float
    max_positions: int
    activation: str
    tied: bool  # the LM head is the token embedding


def read_config(folder: Path) -> Any:
    """The folder's `transformers` config. Raises `UnsupportedModelError` for other families."""
    name_temporary_folder(folder)
    from transformers import AutoConfig  # seconds to import: only where a model is really loaded

    try:
        check_config(model_folder.read_config(folder), str(folder))
        return AutoConfig.from_pretrained(folder, local_files_only=True)
    except ModelUnusable as error:
        raise UnsupportedModelError(str(error)) from None
    except Exception as error:  # transformers' checks raise errors of many kinds, some of many lines
        said = str(error).strip().splitlines() or [type(error).__name__]
        raise UnsupportedModelError(f"{folder}/config.json cannot be read: {said[-1].strip()}") from None


@contextmanager
def refusals_of(config: Any) -> Iterator[None]:
    """Puts the file's name in front of what refuses a config."""
    try:
        yield
    except (UnsupportedModelError, ModelUnusable) as error:
        raise UnsupportedModelError(f"{config.name_or_path}/config.json: {error}") from None


def shape_of(config: Any) -> Shape:
    """The shape of a supported model. Raises `UnsupportedModelError` for variants without a decoder here."""
    with refusals_of(config):
        return _gpt_shape(config) if config.model_type in GPT_LIKE else _llama_shape(config)


def eos_token_ids(folder: Path, config: Any) -> list[int]:
    """Ids of tokens that end an answer: generation_config.json's, else the config's, and the tokenizer's.

    Raises `ModelUnusable` for invalid ids.
    """
    path = folder / "generation_config.json"
    named = model_folder.read_json(path).get("eos_token_id") if path.exists() else None
    ids = config.eos_token_id if named is None else named
    listed = [] if ids is None else ids if isinstance(ids, list) else [ids]
    if any(type(id) is not int for id in listed):
        raise ModelUnusable(f"{path}: eos_token_id is {ids!r}, not a token id or a list of them.")
    own = _tokenizer_eos(folder)
    return listed if own is None or own in listed else [*listed, own]


def _tokenizer_eos(folder: Path) -> int | None:
    """The id of the tokenizer configuration's end token; some models name theirs only there."""
    path, older = folder / "tokenizer_config.json", folder / "special_tokens_map.json"
    described = model_folder.read_json(path) if path.exists() else {}
    if "added_tokens_decoder" not in described and older.exists():
        described |= model_folder.read_json(older)
    named = described.get("eos_token")
    content = named.get("content") if isinstance(named, dict) else named
    if content is None or not (folder / "tokenizer.json").exists():
        return None
    added = described.get("added_tokens_decoder") or {}
    by_content = {token.get("content"): int(id) for id, token in added.items()}
    if content in by_content:
        return by_content[content]
    return Tokenizer.from_file(str(folder / "tokenizer.json")).token_to_id(content)


def _llama_shape(config: Any) -> Shape:
    if config.hidden_act != "silu":
        raise UnsupportedModelError(
            f"hidden_act '{config.hidden_act}' is not supported in a {config.model_type}"
        )
    query = config.num_attention_heads
    dim = getattr(config, "head_dim", None) or config.hidden_size // query
    kv = getattr(config, "num_key_value_heads", None) or query
    return Shape(
        family=config.model_type,
        vocab_size=config.vocab_size,
        hidden_size=config.hidden_size,
        num_layers=config.num_hidden_layers,
        heads=Heads(query, kv, dim, dim**-0.5, _window(config)),
        norm_eps=config.rms_norm_eps,
        max_positions=config.max_position_embeddings,
        activation=config.hidden_act,
        tied=config.tie_word_embeddings,
    )


def _window(config: Any) -> int:
    """Size of the attention window in keys; 0: all keys. As in the families' own code: Llama has no windows,
    Mistral's are on all layers, Qwen's on named layers. Windows on some of the layers are refused."""
    if config.model_type == "llama" or config.sliding_window is None:
        return 0
    kinds = {"sliding_attention"} if config.model_type == "mistral" else set(config.layer_types)
    if kinds == {"full_attention"}:
        return 0
    if kinds != {"sliding_attention"}:
        raise UnsupportedModelError("sliding windows on some layers only are not supported")
    if config.sliding_window < 1:
        raise UnsupportedModelError(f"sliding_window must be from 1 up, not {config.sliding_window}")
    return int(config.sliding_window)


def _gpt_shape(config: Any) -> Shape:
    if config.model_type == "opt":
        if not config.do_layer_norm_before or config.word_embed_proj_dim != config.hidden_size:
            raise UnsupportedModelError(
                "OPT with norms after its blocks or projected embeddings (350m) is not supported"
            )
        if config._remove_final_layer_norm:  # noqa: SLF001
            raise UnsupportedModelError("OPT with _remove_final_layer_norm is not supported")
        if not config.enable_bias or not config.layer_norm_elementwise_affine:
            raise UnsupportedModelError(
                "OPT with enable_bias or layer_norm_elementwise_affine false (Galactica) is not supported"
            )
        activation, eps = config.activation_function, 1e-5
    else:
        if config.scale_attn_by_inverse_layer_idx or not config.scale_attn_weights:
            raise UnsupportedModelError("GPT-2 with other than 1/sqrt(d) attention scaling is not supported")
        if config.add_cross_attention:
            raise UnsupportedModelError("GPT-2 with add_cross_attention is not supported")
        activation, eps = config.activation_function, config.layer_norm_epsilon
    dim = config.hidden_size // config.num_attention_heads
    return Shape(
        family=config.model_type,
        vocab_size=config.vocab_size,
        hidden_size=config.hidden_size,
        num_layers=config.num_hidden_layers,
        heads=Heads(config.num_attention_heads, config.num_attention_heads, dim, dim**-0.5),
        norm_eps=eps,
        max_positions=config.max_position_embeddings,
        activation=activation,
        tied=config.tie_word_embeddings,
    )
