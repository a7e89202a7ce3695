"""The operations in plain torch, on any device: the reference for the fast ones, and their fallback.

The KV layout is the one of kernels.cpp, so that both can work on the same pool.
"""

import torch

from shard.ops.batch import KV, Batch, HeadNorms, Heads, Rope
from shard.ops.blocks import Blocks

LANES = 16  # tokens in a group; a block is block_size / LANES consecutive groups
DIM_STEP = 32  # head dims in the pool are padded to a multiple of this
SCALE_BYTES = LANES * 4  # of a group in 8 bits: one float32 for each token, behind its numbers


class Linear:
    """x @ weight.T + bias, with an optional summand. weight (N, K), bias (N,)."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None = None):
        self.shape = tuple(weight.shape)
        self._weight = weight
        self._bias = bias

    @property
    def tensors(self) -> list[torch.Tensor]:
        """Its tensors."""
        return [self._weight] if self._bias is None else [self._weight, self._bias]

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.linear(x, self._weight, self._bias)

    def add(self, x: torch.Tensor, summand: torch.Tensor) -> torch.Tensor:
        return self(x).add_(summand)


class PlainOps:
    """Plain torch; see `NativeOps` and `CudaOps` for the same methods made fast."""

    name = "plain"

    def __init__(self, block_size: int, compute: torch.dtype | None = None):
        """`compute` is the type of activations and products; None: the weights' type."""
        if block_size % LANES:
            raise ValueError(f"block_size must be a multiple of {LANES}, not {block_size}")
        self.groups_per_block = block_size // LANES
        self.compute = compute

    def widened(self, x: torch.Tensor) -> torch.Tensor:
        """A stored tensor in the compute type."""
        return x if self.compute is None else x.to(self.compute)

    def linear(self, weight: torch.Tensor, bias: torch.Tensor | None = None) -> Linear:
        """A product with constant weights, prepared once. The weight may be consumed."""
        return Linear(self.widened(weight), None if bias is None else self.widened(bias))

    def quantised(self, blocks: Blocks, bias: torch.Tensor | None = None, num_digits: int = 2) -> Linear:
        """A product with quantised weights. Without kernels for them they are dequantised, once.

        Kernels round activations to this many digits of 8 bits: 2 are nearly exact.
        """
        return self.linear(blocks.dequantised().to(self.compute or torch.float32), bias)

    def pool_shapes(
        self, num_blocks: int, heads: Heads, dtype: torch.dtype
    ) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Shapes of one layer's keys and values; the first dimension counts blocks.

        In int8 a group is its numbers, laid out as in other types, and then the scales of its tokens.
        """
        dim = -(-heads.dim // DIM_STEP) * DIM_STEP
        of_all = (num_blocks, heads.kv, self.groups_per_block)
        if dtype is torch.int8:
            return (*of_all, LANES * dim + SCALE_BYTES), (*of_all, LANES * dim + SCALE_BYTES)
        return (*of_all, dim // 2, LANES, 2), (*of_all, LANES, dim)

    def allocate(self, num_blocks: int, heads: Heads, like: torch.Tensor) -> KV:
        """An empty pool for one layer, of the device and dtype of `like`."""
        keys, values = self.pool_shapes(num_blocks, heads, like.dtype)
        return KV(like.new_zeros(keys), like.new_zeros(values))

    def rms_norm(self, x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
        """x / rms(x) * weight over the last dim, in float32; (..., D) -> (..., D)."""
        wide = x.float()
        return (wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps) * weight.float()).to(x.dtype)

    def silu_mul(self, gate_up: torch.Tensor) -> torch.Tensor:
        """silu(gate) * up of a fused (T, 2 I) projection; (T, I)."""
        gate, up = gate_up.float().chunk(2, dim=-1)
        return (torch.nn.functional.silu(gate) * up).to(gate_up.dtype)

    def rope_write(
        self, qkv: torch.Tensor, heads: Heads, rope: Rope, norms: HeadNorms | None, batch: Batch, kv: KV
    ) -> torch.Tensor:
        """Normalise and rotate queries and keys, write keys and values to their slots; queries (T, Hq, D)."""
        split = qkv.view(-1, heads.query + 2 * heads.kv, heads.dim)
        q, k, v = torch.split(split, [heads.query, heads.kv, heads.kv], dim=1)
        if norms is not None:
            q = self.rms_norm(q, norms.query, norms.eps)
            k = self.rms_norm(k, norms.key, norms.eps)
        if rope.rotary_dim:
            q, k = rotate(q, rope, batch.positions), rotate(k, rope, batch.positions)
        self.write(k, v, batch.slots, kv)
        return q

    def write(self, k: torch.Tensor, v: torch.Tensor, slots: torch.Tensor, kv: KV) -> None:
        """Put keys and values, each (T, Hkv, D), into their slots (T,)."""
        group, lane, dim = slots // LANES, slots % LANES, k.shape[-1]
        block, group = group // self.groups_per_block, group % self.groups_per_block
        if kv.keys.dtype is torch.int8:
            k, scales(kv.keys)[block, :, group, lane] = rounded(k)
            v, scales(kv.values)[block, :, group, lane] = rounded(v)
        keys, values = numbers(kv)
        keys[block, :, group, : dim // 2, lane] = k.unflatten(-1, (-1, 2)).to(keys.dtype)
        values[block, :, group, lane, :dim] = v.to(values.dtype)

    def read(
        self, kv: KV, blocks: torch.Tensor, num_keys: int, dim: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values of one sequence, each (num_keys, Hkv, dim), from its blocks (W,)."""
        own = KV(kv.keys[blocks.long()], kv.values[blocks.long()])
        keys, values = numbers(own)
        keys = keys.permute(0, 2, 4, 1, 3, 5).flatten(4).flatten(0, 2)
        values = values.permute(0, 2, 3, 1, 4).flatten(0, 2)
        if kv.keys.dtype is torch.int8:
            by_token = (scales(pool).permute(0, 2, 3, 1).flatten(0, 2) for pool in (own.keys, own.values))
            keys, values = (x * scale[..., None] for x, scale in zip((keys, values), by_token, strict=True))
        return keys[:num_keys, :, :dim], values[:num_keys, :, :dim]

    def attend(self, q: torch.Tensor, heads: Heads, batch: Batch, kv: KV) -> torch.Tensor:
        """Causal attention of each query over its sequence's context; q (T, Hq, D) -> (T, Hq * D)."""
        out = torch.empty(q.shape[0], heads.query, heads.dim, dtype=q.dtype, device=q.device)
        starts = batch.query_starts.tolist()
        for i, num_keys in enumerate(batch.num_keys.tolist()):
            keys, values = self.read(kv, batch.block_tables[i], num_keys, heads.dim)
            rows = slice(starts[i], starts[i + 1])
            out[rows] = attend_one(q[rows], keys, values, heads)
        return out.flatten(1)

    def log_sum_exp(self, logits: torch.Tensor) -> torch.Tensor:
        """(B, V) -> (B,) float32."""
        return torch.logsumexp(logits.float(), dim=-1)

    def top_two(self, logits: torch.Tensor) -> torch.Tensor:
        """The two greatest logits of each row, (B, V) -> (B, 2) float32."""
        return logits.float().topk(2, dim=-1).values

    def likeliest(self, logits: torch.Tensor, count: int) -> torch.Tensor:
        """The indices of the greatest logits of each row, in any order, (B, V) -> (B, count) int64."""
        return logits.topk(count, dim=-1, sorted=False).indices

    def greedy(self, scores: torch.Tensor) -> torch.Tensor:
        """`choose` without noise: each row's likeliest token, the lowest of equals, (B, V) -> (B,) int64."""
        return scores.argmax(dim=-1)

    def choose(self, scores: torch.Tensor, temperatures: torch.Tensor, keys: torch.Tensor) -> torch.Tensor:
        """A token per row by Gumbel-max with stateless noise, (B, V) -> (B,) int64; temperature 0 is greedy.

        `keys` (B, 2) int64 below 2^32 stand for (seed, position): the same key, the same noise, everywhere.
        """
        greedy = temperatures == 0
        noise = gumbel(keys, scores.shape[-1]).masked_fill(greedy[:, None], 0.0)
        wide = scores.float() / temperatures.masked_fill(greedy, 1.0)[:, None]
        return (wide + noise).argmax(dim=-1)

    def keep_top(self, scores: torch.Tensor, counts: torch.Tensor, masses: torch.Tensor) -> None:
        """Top-k, then top-p, in place on float32 (B, V): excluded scores become the lowest float.

        counts (B,) int64, 0: no top-k. masses (B,) float32, 1: no top-p. Ties with the last one kept stay.
        """
        ranked = scores.sort(dim=-1, descending=True).values
        rank = torch.arange(scores.shape[-1], device=scores.device)
        limit = torch.where(counts > 0, counts, scores.shape[-1])[:, None]
        weight = torch.softmax(ranked.masked_fill(rank >= limit, -torch.inf), dim=-1)
        before = weight.cumsum(dim=-1) - weight
        kept = (rank < limit) & ((before < masses[:, None]) | (rank == 0))
        cut = ranked.masked_fill(~kept, torch.inf).amin(dim=-1, keepdim=True)
        scores.masked_fill_(scores < cut, torch.finfo(torch.float32).min)


def numbers(kv: KV) -> tuple[torch.Tensor, torch.Tensor]:
    """Views of keys (N, Hkv, G, D / 2, LANES, 2) and values (N, Hkv, G, LANES, D), without scales."""
    if kv.keys.dtype is not torch.int8:
        return kv.keys, kv.values
    keys, values = kv.keys[..., :-SCALE_BYTES], kv.values[..., :-SCALE_BYTES]
    return keys.unflatten(-1, (-1, LANES, 2)), values.unflatten(-1, (LANES, -1))


def scales(pool: torch.Tensor) -> torch.Tensor:
    """A view of the scales in a pool of int8, (N, Hkv, G, LANES) float32."""
    return pool[..., -SCALE_BYTES:].view(torch.float32)


def rounded(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(T, H, D) in 8 bits, as whole numbers up to 127, and their scales (T, H) float32."""
    most = x.float().abs().amax(dim=-1)
    factor = torch.where(most > 0, 127 / most, 0.0)
    return (x.float() * factor[..., None]).round().to(torch.int8), most / 127


def rotate(x: torch.Tensor, rope: Rope, positions: torch.Tensor) -> torch.Tensor:
    """Half-split rotary embedding of (T, H, D) at positions (T,); Su et al. 2021."""
    cos, sin = rope.cos[positions][:, None], rope.sin[positions][:, None]
    turned, rest = x.float().split([rope.rotary_dim, x.shape[-1] - rope.rotary_dim], dim=-1)
    a, b = turned.chunk(2, dim=-1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin, rest), dim=-1).to(x.dtype)


def attend_one(q: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, heads: Heads) -> torch.Tensor:
    """The last Q queries of a context over all of it: q (Q, Hq, D), keys and values (K, Hkv, D)."""
    ratio = heads.query // heads.kv
    wide_k = keys.float().repeat_interleave(ratio, dim=1)
    wide_v = values.float().repeat_interleave(ratio, dim=1)
    scores = torch.einsum("qhd,khd->hqk", q.float() * heads.scale, wide_k)
    at = torch.arange(keys.shape[0], device=q.device)
    ahead = (
        at[None, :] - at[keys.shape[0] - q.shape[0] :, None]
    )  # (Q, K): position of a key minus that of a query
    hidden = ahead > 0
    if heads.window:
        hidden |= ahead <= -heads.window
    weights = scores.masked_fill(hidden, -torch.inf).softmax(dim=-1)
    return torch.einsum("hqk,khd->qhd", weights, wide_v).to(q.dtype)


def gumbel(keys: torch.Tensor, vocab_size: int) -> torch.Tensor:
    """Standard Gumbel noise (B, V) float32, a pure function of keys (B, 2): kernels.cpp's, bit for bit."""
    tokens = torch.arange(vocab_size, dtype=torch.int64, device=keys.device)
    noise = _mix(_mix(tokens + keys[:, :1]) + keys[:, 1:])
    uniform = ((noise >> 9).float() + 0.5) * 2.0**-23
    return -torch.log(-torch.log(uniform))


def _mix(x: torch.Tensor) -> torch.Tensor:
    """MurmurHash3's 32-bit finalizer in 64-bit integers."""
    mask = 0xFFFFFFFF
    x = x & mask
    x = x ^ (x >> 16)
    x = (x * 0x85EBCA6B) & mask
    x = x ^ (x >> 13)
    x = (x * 0xC2B2AE35) & mask
    return x ^ (x >> 16)
