"""Checks whether the shards fit into memory before they start; running out later would kill a process."""

from pathlib import Path

from router.catalog.model_shape import BYTES, read_shape
from router.settings.config import Config
from router.settings.machine import Machine
from shard.quality.weight_format import CODE_BYTES, GGUF, GGUF_FILE, NONE

GIB = 1024**3
PROCESS_BYTES = 700 * 1024**2  # a shard's memory beside weights and cache: torch, packed copies, buffers


def shortage(config: Config, model_path: Path, machine: Machine) -> str | None:
    """One sentence when the shards of a settled configuration need more memory than there is, else None.

    Checks CPU shards only; a GPU's shard checks its own memory.
    """
    if config.device != "cpu" or config.shard_addresses:
        return None
    weights = weight_bytes(
        model_path,
        config.storage_dtype,
        config.num_layers,
        config.weight_format(model_path, config.exit_choice.mode),
    )
    cache = config.kv_cache_bytes or 0
    needed = config.num_replicas * (weights + cache + PROCESS_BYTES)
    if needed <= machine.available_bytes:
        return None
    return (
        f"Serving {config.model_name} needs about {_gib(needed)} of memory ({config.num_replicas} x "
        f"{_gib(weights)} of weights and {_gib(cache)} of KV cache), but {_gib(machine.available_bytes)} "
        "are available: lower --kv-cache-bytes, --num-shards or --num-layers, or free some memory."
    )


def weight_bytes(model_path: Path, dtype: str, num_layers: int | None, weights: str = NONE) -> int:
    """Bytes of a folder's first `num_layers` layers (None: all) as `dtype`, or with quantised matrices.

    Those stand beside a table of embeddings that is not quantised.
    """
    shape = read_shape(model_path)
    on_disk = sum(file.stat().st_size for file in model_path.glob("*.safetensors"))
    count = on_disk // BYTES.get(shape.stored_dtype, 4)
    if weights == NONE:
        total = count * BYTES[dtype]
    elif weights == GGUF:
        total = (model_path / GGUF_FILE).stat().st_size + shape.table_bytes(dtype)
    else:
        total = int(count * CODE_BYTES[weights]) + shape.table_bytes(dtype)
    return total * min(num_layers or shape.num_layers, shape.num_layers) // shape.num_layers


def _gib(count: int) -> str:
    return f"{count / GIB:.1f} GiB"
