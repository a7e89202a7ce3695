"""The operations on CUDA: pools laid out for torch's FlashAttention."""

import torch
from torch.nn import functional

from shard.ops import flash
from shard.ops.batch import KV, Batch, Heads
from shard.ops.plain import PlainOps


class CudaOps(PlainOps):
    """Plain torch except the pool's layout, (num_blocks, block_size, Hkv, D), and attention over it.

    Where FlashAttention does not work (float32, odd head sizes, GPUs before Ampere) the reference attention
    runs over the same pool.
    """

    name = "cuda"

    def __init__(self, block_size: int, compute: torch.dtype | None = None, has_flash: bool = True):
        super().__init__(block_size, compute)
        self._block_size = block_size
        self._has_flash = has_flash
        self._planned: tuple[Batch, int, flash.Plan] | None = None  # of the last batch: one for all layers

    def pool_shapes(
        self, num_blocks: int, heads: Heads, dtype: torch.dtype
    ) -> tuple[tuple[int, ...], tuple[int, ...]]:
        shape = (num_blocks, self._block_size, heads.kv, heads.dim)
        return shape, shape

    def write(self, k: torch.Tensor, v: torch.Tensor, slots: torch.Tensor, kv: KV) -> None:
        kv.keys.view(-1, *k.shape[1:])[slots] = k
        kv.values.view(-1, *v.shape[1:])[slots] = v

    def read(
        self, kv: KV, blocks: torch.Tensor, num_keys: int, dim: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        at = blocks.long()
        return kv.keys[at].flatten(0, 1)[:num_keys], kv.values[at].flatten(0, 1)[:num_keys]

    def rms_norm(self, x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
        return functional.rms_norm(x, weight.shape, weight, eps)

    def silu_mul(self, gate_up: torch.Tensor) -> torch.Tensor:
        gate, up = gate_up.chunk(2, dim=-1)
        return functional.silu(gate).mul_(up)

    def attend(self, q: torch.Tensor, heads: Heads, batch: Batch, kv: KV) -> torch.Tensor:
        suits = q.dtype in flash.DTYPES and heads.dim % 8 == 0 and heads.dim <= flash.MAX_HEAD_DIM
        if not self._has_flash or not suits:
            return super().attend(q, heads, batch, kv)
        return flash.attend(q, heads, self._plan(batch, heads.window), kv).flatten(1)

    def _plan(self, batch: Batch, window: int) -> flash.Plan:
        if self._planned is None or self._planned[0] is not batch or self._planned[1] != window:
            self._planned = batch, window, flash.plan_of(batch, self._block_size, window)
        return self._planned[2]
