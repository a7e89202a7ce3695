"""A step's batch as tensors, read by every layer: token ids, positions, KV slots."""

import msgspec
import torch


class Batch(msgspec.Struct, frozen=True):
    """T tokens of B sequences; each sequence's tokens are adjacent.

    A slot is block * block_size + offset: the place of one token in every layer's pool.
    """

    token_ids: torch.Tensor  # (T,) int64
    positions: torch.Tensor  # (T,) int64
    slots: torch.Tensor  # (T,) int64
    query_starts: (
        torch.Tensor
    )  # (B + 1,) int64: rows of sequence i are query_starts[i] .. query_starts[i + 1]
    num_keys: torch.Tensor  # (B,) int64: context length with this step's tokens
    block_tables: torch.Tensor  # (B, W) int32, padded with 0
    max_queries: int
    max_keys: int

    @property
    def num_sequences(self) -> int:
        return self.num_keys.shape[0]


class KV(msgspec.Struct, frozen=True):
    """One layer's pool. The layout depends on the device."""

    keys: torch.Tensor
    values: torch.Tensor


class Heads(msgspec.Struct, frozen=True):
    """A layer's attention. A fused projection is (T, (query + 2 kv) * dim): queries, keys, values."""

    query: int
    kv: int
    dim: int
    scale: float
    window: int = 0  # keys a query sees, its own included; 0: all before it

    @property
    def query_width(self) -> int:
        return self.query * self.dim

    @property
    def width(self) -> int:
        return (self.query + 2 * self.kv) * self.dim


class Rope(msgspec.Struct, frozen=True):
    """Rotary embedding tables, (max_positions, rotary_dim / 2) float32; rotary_dim 0 rotates nothing."""

    cos: torch.Tensor
    sin: torch.Tensor
    rotary_dim: int


class HeadNorms(msgspec.Struct, frozen=True):
    """RMSNorm weights over the dims of each query and key head (Qwen3), each (dim,)."""

    query: torch.Tensor
    key: torch.Tensor
    eps: float
