"""The router's one reader of a model's shape, from its config.json."""

import json
from pathlib import Path
from typing import Any

import msgspec

BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}  # bytes of a number, by dtype


class ModelShape(msgspec.Struct, frozen=True):
    """Shape of a decoder. `stored_dtype` is the type of the weights in its files."""

    num_layers: int
    max_positions: int | None  # None: not said
    hidden_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    vocab_size: int
    is_tied: bool  # embedding and LM head are one
    stored_dtype: str

    def kv_bytes(self, dtype: str) -> int:
        """Bytes of one token's keys and values in one layer."""
        return 2 * self.num_kv_heads * self.head_dim * BYTES[dtype]

    def table_bytes(self, dtype: str) -> int:
        """Bytes of the embedding table."""
        return self.vocab_size * self.hidden_size * BYTES[dtype] * (1 if self.is_tied else 2)


def read_shape(folder: Path) -> ModelShape:
    """Raises `OSError`, `ValueError`, or `KeyError` with the key that is missing."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    if not isinstance(config, dict):
        raise ValueError(f"{folder / 'config.json'} is no JSON object")
    hidden_size = int(config.get("hidden_size") or config["n_embd"])
    num_heads = int(config.get("num_attention_heads") or config["n_head"])
    return ModelShape(
        num_layers=int(config.get("num_hidden_layers") or config["n_layer"]),
        max_positions=_number(config.get("max_position_embeddings") or config.get("n_positions")),
        hidden_size=hidden_size,
        num_heads=num_heads,
        num_kv_heads=int(config.get("num_key_value_heads") or num_heads),
        head_dim=int(config.get("head_dim") or hidden_size // num_heads),
        vocab_size=int(config["vocab_size"]),
        is_tied=bool(config.get("tie_word_embeddings", False)),
        stored_dtype=config.get("dtype") or config.get("torch_dtype") or "float32",
    )


def _number(value: Any) -> int | None:
    return None if value is None else int(value)
