"""What matrices are kept in: the storage type, or blocks of 4 or 8 bits.

Imports no torch, since the router uses it too, before a shard has loaded anything.
"""

from pathlib import Path

from shard.messages import Mode

AUTO, NONE, INT8, INT4, GGUF = "auto", "none", "int8", "int4", "gguf"
QUANTIZE = (AUTO, NONE, INT8, INT4)  # what may be asked for
GGUF_FILE = "model.gguf"
BLOCKS_INDEX = "gguf.json"  # of the quantised matrices in a folder's GGUF file
CODE_BYTES = {INT8: 34 / 32, INT4: 18 / 32}  # of a number, with its share of the scale
DESCRIPTIONS = {
    INT8: "of 8 bits with a scale for each 32, made at load",
    INT4: "of 4 bits with a scale for each 32, made at load",
    GGUF: "as they are in the model's GGUF file, in its own blocks",
}


def weight_format(quantize: str, folder: Path, device: str, mode: Mode) -> str:
    """What the matrices of a folder's model are kept in: none (the storage type) | int8 | int4 | gguf.

    `auto` takes them as they come, in the blocks of a GGUF file, on CPUs and where answers are full depth's.
    Where exits answer it is the storage type, which their certificates cover.
    """
    if quantize != AUTO:
        return quantize
    has_blocks = device == "cpu" and (folder / BLOCKS_INDEX).is_file()
    return GGUF if has_blocks and mode.is_lossless else NONE


def certified_name(dtype: str, weights: str, kv_dtype: str) -> str:
    """What a certificate calls a storage type, the format of matrices and a KV cache of another type."""
    parts = [dtype]
    if weights != NONE:
        parts.append(weights)
    if kv_dtype != dtype:
        parts.append(f"kv-{kv_dtype}")
    return "+".join(parts)
