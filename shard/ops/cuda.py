"""The operations on CUDA: pages laid out for torch's paged variable-length FlashAttention."""

import torch
from torch.nn import functional

from shard.ops.batch import KV, Batch, Heads
from shard.ops.plain import PlainOps

FLASH_DTYPES = (torch.float16, torch.bfloat16)


class CudaOps(PlainOps):
    """Plain torch but for the pool's layout, (num_blocks, block_size, Hkv, D), and attention over it.

    float32 has no FlashAttention: it runs the reference attention over the same pool, for checks.
    """

    name = "cuda"

    def __init__(self, block_size: int, compute: torch.dtype | None = None):
        super().__init__(block_size, compute)
        self._block_size = block_size

    def pool_shapes(self, num_blocks: int, heads: Heads) -> tuple[tuple[int, ...], tuple[int, ...]]:
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
        if q.dtype not in FLASH_DTYPES:
            return super().attend(q, heads, batch, kv)
        from torch.nn.attention.varlen import varlen_attn  # only there in CUDA builds that can run it

        out = varlen_attn(
            q,
            kv.keys,
            kv.values,
            batch.query_starts.int(),
            None,
            batch.max_queries,
            batch.max_keys,
            scale=heads.scale,
            window_size=(heads.window - 1 if heads.window else -1, 0),
            enable_gqa=heads.query != heads.kv,
            seqused_k=batch.num_keys.int(),
            block_table=batch.block_tables,
        )
        assert isinstance(out, torch.Tensor)
        return out.flatten(1)
