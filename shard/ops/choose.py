"""Which operations a shard runs on: by device, and by what this machine can build."""

import logging
from pathlib import Path

import torch

from shard.ops.cuda import CudaOps
from shard.ops.native import NativeOps, build
from shard.ops.plain import PlainOps

log = logging.getLogger("helios.shard")


def choose_ops(
    device: torch.device, dtype: torch.dtype, block_size: int, num_threads: int, cache: Path
) -> PlainOps:
    """The fastest operations there are for a device; `cache` keeps what was compiled."""
    if device.type == "cuda":
        return CudaOps(block_size)
    library = build(cache)
    if library is None:
        log.warning("no C++ compiler (g++) found: running plain torch operations, several times slower")
        return PlainOps(block_size)
    return NativeOps(block_size, dtype, num_threads, library)
