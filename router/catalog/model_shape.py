"""The router's one reader of a model's shape, from its config.json."""

import json
from pathlib import Path

import msgspec

BYTES = {"float32": 4, "float16": 2, "bfloat16": 2, "int8": 1}  # bytes of a number, by dtype
_SCALE_BYTES = 4  # of a KV head's keys, or values, of one token in int8


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
        scale = _SCALE_BYTES if dtype == "int8" else 0
        return 2 * self.num_kv_heads * (self.head_dim * BYTES[dtype] + scale)

    def table_bytes(self, dtype: str) -> int:
        """Bytes of the embedding table."""
        return self.vocab_size * self.hidden_size * BYTES[dtype] * (1 if self.is_tied else 2)


def read_shape(folder: Path) -> ModelShape:
    """Raises `OSError` or `ValueError`, whose sentence names a key that is missing or no whole number."""
    path = folder / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(config, dict):
        raise ValueError(f"{path} is no JSON object")

    def number(*keys: str) -> int:
        value = optional(*keys)
        if value is None:
            raise ValueError(f"{path} lacks {keys[0]}")
        return value

    def optional(*keys: str) -> int | None:
        key = next((key for key in keys if config.get(key) is not None), None)
        if key is None:
            return None
        if type(config[key]) is not int or config[key] < 1:
            raise ValueError(f"{path}: {key} is {config[key]!r}, not a whole number from 1 up")
        return int(config[key])

    hidden_size, num_heads = number("hidden_size", "n_embd"), number("num_attention_heads", "n_head")
    stored_dtype = config.get("dtype") or config.get("torch_dtype") or "float32"
    return ModelShape(
        num_layers=number("num_hidden_layers", "n_layer"),
        max_positions=optional("max_position_embeddings", "n_positions"),
        hidden_size=hidden_size,
        num_heads=num_heads,
        num_kv_heads=optional("num_key_value_heads") or num_heads,
        head_dim=optional("head_dim") or hidden_size // num_heads,
        vocab_size=number("vocab_size"),
        is_tied=bool(config.get("tie_word_embeddings", False)),
        stored_dtype=str(stored_dtype),
    )
