"""Random weights of published shapes (`random:opt-1.3b`): real matrix sizes where no weights are at hand.

`random:opt-1.3b:4` is a fourth as wide: as many layers, all matrices in their proportions. Answers of such a
model are labelled wherever they appear.
"""

import json
import zlib
from pathlib import Path
from typing import Any

import torch

from shard.models.checkpoint import CheckpointError
from shard.models.manifest import HEAD, expected_shapes
from shard.models.model_folder import RANDOM_MARK, ModelUnusable

PREFIX = "random:"
STD = 0.02
_WIDTHS = (
    *("hidden_size", "word_embed_proj_dim", "ffn_dim", "intermediate_size"),
    *("num_attention_heads", "num_key_value_heads", "vocab_size"),
)
PATTERN_NUMBERS = 1 << 22  # drawn once and repeated: drawing billions would take minutes

_LLAMA2 = {"vocab_size": 32000, "max_position_embeddings": 4096, "rms_norm_eps": 1e-5}
SHAPES: dict[str, dict[str, Any]] = {
    "smollm2-135m": {
        "model_type": "llama",
        "hidden_size": 576,
        "intermediate_size": 1536,
        "num_hidden_layers": 30,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "vocab_size": 49152,
        "max_position_embeddings": 8192,
        "tie_word_embeddings": True,
    },
    "opt-1.3b": {"model_type": "opt", "hidden_size": 2048, "ffn_dim": 8192, "num_hidden_layers": 24},
    "opt-6.7b": {"model_type": "opt", "hidden_size": 4096, "ffn_dim": 16384, "num_hidden_layers": 32},
    "llama2-7b": _LLAMA2
    | {
        "model_type": "llama",
        "hidden_size": 4096,
        "intermediate_size": 11008,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
    },
    "llama3-8b": {
        "model_type": "llama",
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "vocab_size": 128256,
        "max_position_embeddings": 8192,
        "rope_parameters": {"rope_type": "default", "rope_theta": 500000.0},
    },
}
for _name, _heads in (("opt-1.3b", 32), ("opt-6.7b", 32)):
    SHAPES[_name] |= {
        "num_attention_heads": _heads,
        "word_embed_proj_dim": SHAPES[_name]["hidden_size"],
        "vocab_size": 50272,
        "max_position_embeddings": 2048,
        "activation_function": "relu",
    }


def write_random_model(name: str, folder: Path) -> None:
    """Write a folder without weights that loads as a model of a published shape. Raises `ModelUnusable`."""
    (folder / "config.json").write_text(json.dumps(_shape(name.removeprefix(PREFIX))))
    (folder / RANDOM_MARK).write_text(json.dumps({"shape": name, "std": STD}))


def _shape(name: str) -> dict[str, Any]:
    """The configuration that `opt-1.3b` or `opt-1.3b:4` names."""
    known, _, divisor = name.partition(":")
    if known not in SHAPES:
        choices = ", ".join(PREFIX + shape for shape in SHAPES)
        raise ModelUnusable(f"There is no shape {PREFIX + known!r}: choose {choices}.")
    shape = dict(SHAPES[known])
    if not divisor:
        return shape
    widths = {field: shape[field] for field in _WIDTHS if field in shape}
    narrow = int(divisor) if divisor.isdecimal() else 0
    if narrow < 1 or any(width % narrow for width in widths.values()):
        raise ModelUnusable(f"{known} cannot be narrowed by {divisor}: it must divide {widths}.")
    return shape | {field: width // narrow for field, width in widths.items()}


class RandomCheckpoint:
    """Replaces a `Checkpoint`: tensors of the right names and shapes, one random pattern repeated."""

    def __init__(self, config: Any):
        self._shapes = expected_shapes(config)
        if config.tie_word_embeddings:
            del self._shapes[HEAD]
        generator = torch.Generator().manual_seed(0)
        self._pattern = torch.randn(PATTERN_NUMBERS, generator=generator).bfloat16() * STD

    def __contains__(self, name: str) -> bool:
        return name in self._shapes

    def read(self, name: str, shape: tuple[int, ...] | None = None) -> torch.Tensor:
        """A tensor in bfloat16: norms near 1, biases near 0, the rest around 0."""
        if name not in self._shapes:
            raise CheckpointError(f"tensor '{name}' does not exist in this shape")
        actual = self._shapes[name]
        if shape is not None and actual != shape:
            raise CheckpointError(f"tensor '{name}' has shape {actual}, not {shape}")
        start, missing = zlib.crc32(name.encode()) % PATTERN_NUMBERS, torch.Size(actual).numel()
        pieces: list[torch.Tensor] = []
        while missing:
            pieces.append(self._pattern[start : start + missing])
            start, missing = 0, missing - len(pieces[-1])
        numbers = torch.cat(pieces).view(actual)
        return numbers + 1 if "norm" in name and name.endswith("weight") else numbers

    def prefix(self, candidates: tuple[str, ...], probe: str) -> str:
        """As `Checkpoint.prefix`."""
        return next(candidate for candidate in candidates if candidate + probe in self)
