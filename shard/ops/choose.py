"""Chooses a shard's operations by its device and by what this machine can build."""

import logging
import os
from pathlib import Path

import torch

from shard.ops.build import build
from shard.ops.cuda import CudaOps
from shard.ops.native import NativeOps
from shard.ops.plain import PlainOps
from shard.precision import Precision, usable_cpu

log = logging.getLogger("helios.shard")


def choose_ops(
    device: torch.device, precision: Precision, block_size: int, num_threads: int, cache: Path
) -> PlainOps:
    """The fastest operations available for a device; `cache` is the folder of compiled libraries.

    On a CPU, weights and KV are asked for in huge pages: attention over scattered blocks gains 7%.
    """
    if device.type == "cuda":
        return CudaOps(block_size, precision.compute, _has_flash(device))
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")  # read by torch at its first large allocation
    library = build(cache, usable_cpu())
    if library is None:
        return PlainOps(block_size, precision.compute)
    return NativeOps(block_size, precision, num_threads, library)


def _has_flash(device: torch.device) -> bool:
    built = torch.backends.cuda.is_flash_attention_available()
    if not built or torch.cuda.get_device_capability(device) < (8, 0):
        log.warning(
            "no FlashAttention for this GPU and this build of torch (it begins with Ampere): "
            "attention runs as plain torch operations, many times slower"
        )
        return False
    return True
