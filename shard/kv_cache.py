"""The memory behind the block numbers: one pool per layer, so that a layer can go and free its memory."""

import torch

from shard.ops.batch import KV, Heads
from shard.ops.plain import PlainOps

CPU_KV_CACHE_BYTES = 1 << 30
CUDA_MEMORY_SHARE = 0.9  # of what is free once the weights are there; the rest is for activations
CUDA_ACTIVATION_BYTES = 1 << 30


class KVCache:
    """Pools of `num_blocks` blocks for each of `num_layers` layers."""

    def __init__(self, ops: PlainOps, heads: Heads, num_layers: int, num_blocks: int, like: torch.Tensor):
        self.num_blocks = num_blocks
        self.layers: list[KV] = [ops.allocate(num_blocks, heads, like) for _ in range(num_layers)]


def block_bytes(ops: PlainOps, heads: Heads, num_layers: int, like: torch.Tensor) -> int:
    """Bytes that one block takes in all layers together, padding included."""
    kv = ops.allocate(1, heads, like)
    return num_layers * (kv.keys.numel() + kv.values.numel()) * like.element_size()


def free_bytes(device: torch.device) -> int:
    """Memory that KV may take on a device when no size was asked for."""
    if device.type != "cuda":
        return CPU_KV_CACHE_BYTES
    free, _ = torch.cuda.mem_get_info(device)
    return max(0, int(free * CUDA_MEMORY_SHARE) - CUDA_ACTIVATION_BYTES)
