"""Converts other formats to a model folder: GGUF files, old weight files, slow tokenizers.

Uses transformers, imported only when needed; runs while a model is resolved, never while one is served.
Writes into the given folder, never into the source.
"""

import contextlib
import io
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from shard.models.gguf_index import BLOCK_SIZES, Place, write_index
from shard.models.model_folder import ModelUnusable, check_family
from shard.quality.weight_format import GGUF_FILE
from shard.temporary import name_temporary_folder

CONVERSION = "v3"  # format version: folders of another version are converted again
_BLOCK_FAMILIES = ("llama", "qwen2", "qwen3")  # whose matrices are (out, in) as in safetensors
_GPT2_SPLITS = ("", "default", "gpt-2")  # transformers' default splitting of text


@dataclass(frozen=True)
class GgufHeader:
    """Metadata of a .gguf file that transformers ignores."""

    family: str
    pre_tokenizer: str
    head_dim: int | None
    rope_dims: int | None
    has_scaled_rope: bool
    tensors: tuple[str, ...]
    matrices: dict[str, Place]  # the quantised ones whose blocks can be served, by the file's names
    matrix_dtype: str  # of 16-bit or 32-bit matrices; float32 for quantised ones, whose values it holds


def convert_gguf(source: Path, folder: Path) -> None:
    """Write the model in a .gguf file as a complete model folder.

    Nothing is lost: every tensor of the file is used, matrices of 16 bits stay as they are, quantised ones
    become the float32 values that their blocks stand for, and so do norms and biases. Rounding is for whoever
    loads them. Raises `ModelUnusable` for a damaged file, one with layers or a tokenizer missing, one with
    something in it that transformers would leave out, or one that cannot be served.
    """
    try:
        header = _read_header(source)
    except ModelUnusable:
        raise
    except (OSError, ValueError, KeyError, IndexError) as error:
        _pass_on_the_systems(error)
        reason = _first_sentence(error)
        raise ModelUnusable(f"{source} is not a readable GGUF file ({reason}): fetch it again.") from None
    check_family(header.family, str(source))
    if header.has_scaled_rope:
        raise ModelUnusable(
            f"{source} scales its positions in a way read from safetensors only: serve that form."
        )
    with _quiet_transformers(folder):
        config = _gguf_config(source, header)
        places = _check_places(source, header, config)
        tokenizer = _gguf_tokenizer(source, header.pre_tokenizer)
        model = _load_model(source.parent, config=config, gguf_file=source.name, dtype="float32")
    tokenizer.model_max_length = model.config.max_position_embeddings
    _save(model, folder, header.matrix_dtype)
    tokenizer.save_pretrained(folder, save_jinja_files=False)
    if places:
        keep_blocks(source, places, folder)


def keep_blocks(source: Path, places: dict[str, Place], folder: Path) -> None:
    """Add a GGUF file to its model's folder, with the index of its blocks."""
    if source.parent != folder:
        (folder / GGUF_FILE).symlink_to(source)
    write_index(folder, places)


def convert_weights(source: Path, folder: Path) -> None:
    """Write a folder's old weight files (pytorch_model.bin) as safetensors, with its config."""
    with _quiet_transformers(folder):
        model = _load_model(source, dtype="auto")
    _save(model, folder)


def make_tokenizer(source: Path, folder: Path) -> None:
    """Write tokenizer.json and tokenizer_config.json for a folder that has only a slow tokenizer's files."""
    from transformers import AutoTokenizer

    try:
        with _quiet_transformers(folder):
            tokenizer = AutoTokenizer.from_pretrained(source)
    except Exception as error:  # tokenizers raises nothing narrower
        _pass_on_the_systems(error)
        raise ModelUnusable(
            f"No tokenizer could be made from {source}: add its tokenizer.json "
            "(a tokenizer.model is read once `pip install sentencepiece protobuf` was run)."
        ) from error
    if not tokenizer.is_fast or tokenizer.vocab_size == 0:
        raise ModelUnusable(f"{source} holds no tokenizer: add its tokenizer.json.")
    tokenizer.save_pretrained(folder, save_jinja_files=False)


def _read_header(source: Path) -> GgufHeader:
    from gguf import GGUFReader

    reader = GGUFReader(source)

    def fact(name: str) -> Any:
        field = reader.get_field(name)
        return None if field is None else field.contents()

    family = fact("general.architecture")
    if fact("tokenizer.ggml.tokens") is None:
        raise ModelUnusable(
            f"{source} holds no tokenizer (tokenizer.ggml.tokens is missing): fetch a file that has one."
        )
    matrices = {tensor.tensor_type.name for tensor in reader.tensors if len(tensor.shape) > 1}
    scaling = fact(f"{family}.rope.scaling.type") not in (None, "none")
    return GgufHeader(
        family=family,
        pre_tokenizer=fact("tokenizer.ggml.pre") or "",
        head_dim=fact(f"{family}.attention.key_length"),
        rope_dims=fact(f"{family}.rope.dimension_count"),
        has_scaled_rope=scaling or any(tensor.name == "rope_freqs.weight" for tensor in reader.tensors),
        tensors=tuple(tensor.name for tensor in reader.tensors),
        matrices={
            tensor.name: Place(
                tensor.tensor_type.name, int(tensor.data_offset), (int(tensor.shape[1]), int(tensor.shape[0]))
            )
            for tensor in reader.tensors
            if tensor.tensor_type.name in BLOCK_SIZES
        },
        matrix_dtype={("F16",): "float16", ("BF16",): "bfloat16"}.get(tuple(matrices), "float32"),
    )


def _gguf_config(source: Path, header: GgufHeader) -> Any:
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(source.parent, gguf_file=source.name)
    except Exception as error:  # transformers' checks raise errors without a common class
        _pass_on_the_systems(error)
        raise ModelUnusable(
            f"{source} describes no model ({_first_sentence(error)}): fetch another."
        ) from None
    if header.head_dim is not None and hasattr(config, "head_dim"):
        config.head_dim = header.head_dim
    head_dim = header.head_dim or config.hidden_size // config.num_attention_heads
    if header.rope_dims not in (None, head_dim):
        raise ModelUnusable(
            f"{source}: {header.family}.rope.dimension_count is {header.rope_dims}, and only all {head_dim} "
            "dims of a head can be rotated: serve another model."
        )
    return config


def _check_places(source: Path, header: GgufHeader, config: Any) -> dict[str, Place]:
    """Where quantised matrices are, by their names in the model. Raises `ModelUnusable` for a tensor without
    a place there, which transformers would drop."""
    from gguf import MODEL_ARCH_NAMES, get_tensor_name_map

    from shard.models.manifest import expected_shapes

    architectures = {name: architecture for architecture, name in MODEL_ARCH_NAMES.items()}
    if header.family not in architectures:
        raise ModelUnusable(
            f"{source} is of architecture {header.family!r}, which has no names for tensors in GGUF files: "
            "serve its safetensors."
        )
    places = get_tensor_name_map(architectures[header.family], config.num_hidden_layers)
    used = {name: places.get_name(name, (".weight", ".bias")) for name in expected_shapes(config)}
    if unused := [name for name in header.tensors if name not in used.values()]:
        raise ModelUnusable(
            f"{source} holds the tensor {unused[0]}, which a {header.family} of {config.num_hidden_layers} "
            "layers has no place for: serve its safetensors."
        )
    if header.family not in _BLOCK_FAMILIES:
        return {}
    heads = {".q_proj.weight": config.num_attention_heads, ".k_proj.weight": config.num_key_value_heads}
    return {
        name: msgspec.structs.replace(
            header.matrices[at],
            heads=next((n for tail, n in heads.items() if name.endswith(tail)), None)
            if header.family == "llama"
            else None,
        )
        for name, at in used.items()
        if at in header.matrices
    }


def _gguf_tokenizer(source: Path, pre_tokenizer: str) -> Any:
    """The file's tokenizer. Raises `ModelUnusable` if transformers cannot tell how the model splits text."""
    from tokenizers.pre_tokenizers import Sequence
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name)
    backend = tokenizer.backend_tokenizer
    if pre_tokenizer == "smollm":
        backend.pre_tokenizer = _digits_then_bytes()
    elif pre_tokenizer not in _GPT2_SPLITS and not isinstance(backend.pre_tokenizer, Sequence):
        raise ModelUnusable(
            f"{source}: tokenizer.ggml.pre is {pre_tokenizer!r}, whose way to split text is not supported: "
            "serve its safetensors."
        )
    return tokenizer


def _digits_then_bytes() -> Any:
    """SmolLM's pre-tokenizer, which splits digits first; transformers lacks it for GGUF files."""
    from tokenizers.pre_tokenizers import ByteLevel, Digits, Sequence

    return Sequence([Digits(individual_digits=True), ByteLevel(add_prefix_space=False)])


def _load_model(source: Path, **options: Any) -> Any:
    from transformers import AutoModelForCausalLM

    try:
        model, found = AutoModelForCausalLM.from_pretrained(source, output_loading_info=True, **options)
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        _pass_on_the_systems(error)
        raise ModelUnusable(f"The weights in {source} cannot be read ({_first_sentence(error)}).") from None
    _check_complete(source / options.get("gguf_file", ""), found)
    return model


def _check_complete(source: Path, found: dict[str, Any]) -> None:
    """Raises `ModelUnusable` for missing tensors, which transformers would fill with random numbers."""
    if missing := sorted(found["missing_keys"]):
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise ModelUnusable(f"{source} lacks the tensor {missing[0]}{more}: fetch the whole model.")
    if unexpected := sorted(found["unexpected_keys"]):
        raise ModelUnusable(
            f"{source} holds the tensor {unexpected[0]}, which its config.json does not account for."
        )


def _save(model: Any, folder: Path, matrix_dtype: str | None = None) -> None:
    """Save a model like `save_pretrained`, which refuses GGUF models: plain weights, tied ones once."""
    import torch
    from safetensors.torch import save_file

    to = None if matrix_dtype is None else getattr(torch, matrix_dtype)
    seen: set[int] = set()
    weights = {}
    for name, tensor in model.state_dict().items():
        if tensor.data_ptr() not in seen:
            seen.add(tensor.data_ptr())
            weights[name] = (tensor.to(to) if tensor.ndim > 1 else tensor).contiguous()
    model.config.dtype = to or model.config.dtype
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    _save_config(model, folder)


def _save_config(model: Any, folder: Path) -> None:
    """Save the configuration without traces of the source: the packed file, a local path."""
    config = model.config
    for name in ("quantization_config", "_model_name_or_path"):
        config.__dict__.pop(name, None)
    config.architectures = [type(model).__name__]
    config.save_pretrained(folder)
    model.generation_config._from_model_config = False  # noqa: SLF001
    model.generation_config.save_pretrained(folder)


@contextlib.contextmanager
def _quiet_transformers(folder: Path) -> Iterator[None]:
    """Silence transformers' warnings and progress bars, which would hide ours."""
    name_temporary_folder(folder)
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    with contextlib.redirect_stderr(io.StringIO()):
        yield


def _pass_on_the_systems(error: Exception) -> None:
    """Re-raise errors of the machine, such as a missing folder for temporary files."""
    if isinstance(error, OSError) and error.errno is not None:
        raise error


def _first_sentence(error: BaseException) -> str:
    return str(error).strip().split("\n", 1)[0].removesuffix(".") or type(error).__name__
