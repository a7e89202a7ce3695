"""Attention over scattered KV blocks by torch's FlashAttention.

Its kernel takes the start and the number of each sequence's keys; block tables only from torch 2.13 on, and
then in blocks of 256 alone. So decoding gives it each block as a sequence of its own: KV is read where it
lies, once, and the answers are weighed by their log-sum-exps (flash-decoding, Dao et al. 2023). Longer
chunks are bound by arithmetic: their blocks are gathered first.
"""

from itertools import accumulate, pairwise
from typing import Any

import msgspec
import torch
from torch.nn import functional

from shard.ops.batch import KV, Batch, Heads

DTYPES = (torch.float16, torch.bfloat16)
MAX_HEAD_DIM = 256
MAX_PARTS = 65_535  # sequences of one call: a CUDA grid is no larger


class Singles(msgspec.Struct, frozen=True):
    """S sequences with one query each, as S * W blocks."""

    rows: torch.Tensor | None  # (S,) their queries among the batch's; None: all
    part_starts: torch.Tensor  # (S * W + 1,) int32: 0, 1, 2, ...
    slots: torch.Tensor  # (S, W) int32: the first slot seen of each block
    num_keys: torch.Tensor  # (S, W) int32: keys seen from there on, 1 where there are none
    unseen: torch.Tensor  # (S, W): blocks without a key that is seen


class Chunks(msgspec.Struct, frozen=True):
    """Sequences with several queries, their blocks one after the other."""

    rows: torch.Tensor | None  # their queries among the batch's; None: all
    query_starts: torch.Tensor  # (C + 1,) int32, among `rows`
    blocks: torch.Tensor  # (P,) int64
    slots: torch.Tensor  # (C + 1,) int32: where each sequence's keys begin among the blocks gathered
    num_keys: torch.Tensor  # (C,) int32
    max_queries: int
    max_keys: int


class Plan(msgspec.Struct, frozen=True):
    """How a batch goes through the kernel, the same in every layer."""

    singles: Singles | None
    chunks: Chunks | None


def plan_of(batch: Batch, block_size: int, window: int) -> Plan:
    """A plan for pools of such blocks; with a window, a query sees so many keys. Waits for no device while
    every sequence has one query.
    """
    tables = batch.block_tables[:, : -(-batch.max_keys // block_size)]  # blocks reserved have no keys yet
    if batch.max_queries == 1:
        return Plan(_singles(tables, batch.num_keys, None, block_size, window), None)
    starts, num_keys = batch.query_starts.tolist(), batch.num_keys.tolist()
    counts = [end - start for start, end in pairwise(starts)]
    single = [i for i, count in enumerate(counts) if count == 1]
    several = [i for i, count in enumerate(counts) if count > 1]
    device, singles = tables.device, None
    if single:
        at = torch.tensor(single, device=device)
        singles = _singles(tables[at], batch.num_keys[at], batch.query_starts[at], block_size, window)
    rows = [row for i in several for row in range(starts[i], starts[i + 1])] if single else None
    blocks = [-(-num_keys[i] // block_size) for i in several]
    owners = [i for i, count in zip(several, blocks, strict=True) for _ in range(count)]
    nths = [nth for count in blocks for nth in range(count)]

    def ints(values: list[int]) -> torch.Tensor:
        return torch.tensor(values, dtype=torch.int32, device=device)

    chunks = Chunks(
        None if rows is None else torch.tensor(rows, device=device),
        ints([0, *accumulate(counts[i] for i in several)]),
        tables[torch.tensor(owners, device=device), torch.tensor(nths, device=device)].long(),
        ints([0, *accumulate(count * block_size for count in blocks)]),
        ints([num_keys[i] for i in several]),
        max(counts[i] for i in several),
        max(num_keys[i] for i in several),
    )
    return Plan(singles, chunks)


def attend(q: torch.Tensor, heads: Heads, plan: Plan, kv: KV) -> torch.Tensor:
    """Causal attention, q (T, Hq, D) -> (T, Hq, D), over pools of (num_blocks, block_size, Hkv, D)."""
    singles, chunks = plan.singles, plan.chunks
    if chunks is None:
        assert singles is not None
        return _attend_singles(q, heads, singles, kv)
    if singles is None:
        return _attend_chunks(q, heads, chunks, kv)
    out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    assert singles.rows is not None and chunks.rows is not None
    out[singles.rows] = _attend_singles(q[singles.rows], heads, singles, kv)
    out[chunks.rows] = _attend_chunks(q[chunks.rows], heads, chunks, kv)
    return out


def _singles(
    tables: torch.Tensor, num_keys: torch.Tensor, rows: torch.Tensor | None, block_size: int, window: int
) -> Singles:
    firsts = torch.arange(0, tables.shape[1] * block_size, block_size, device=tables.device)
    ends = (num_keys[:, None] - firsts).clamp(0, block_size)
    begins = (num_keys[:, None] - window - firsts).clamp(0, block_size) if window else torch.zeros_like(ends)
    seen = ends - begins
    return Singles(
        rows,
        torch.arange(tables.numel() + 1, dtype=torch.int32, device=tables.device),
        (tables * block_size + begins.clamp(max=block_size - 1)).int(),
        seen.clamp(min=1).int(),
        seen == 0,
    )


def _attend_singles(q: torch.Tensor, heads: Heads, singles: Singles, kv: KV) -> torch.Tensor:
    """(S, Hq, D) -> (S, Hq, D), some sequences at a time where there are very many blocks."""
    count = max(1, MAX_PARTS // singles.slots.shape[1])
    pieces = [_attend_some(q, heads, singles, kv, slice(at, at + count)) for at in range(0, len(q), count)]
    return pieces[0] if len(pieces) == 1 else torch.cat(pieces)


def _attend_some(q: torch.Tensor, heads: Heads, singles: Singles, kv: KV, some: slice) -> torch.Tensor:
    """Each block's answer to its sequence's query, then all of a sequence as one."""
    q, slots = q[some], singles.slots[some]
    num, width = slots.shape
    out, log_sums = flash(
        q[:, None].expand(-1, width, -1, -1).flatten(0, 1),
        kv,
        singles.part_starts[: num * width + 1],
        functional.pad(slots.flatten(), (0, 1)),
        singles.num_keys[some].flatten(),
        max_queries=1,
        max_keys=kv.keys.shape[1],
        scale=heads.scale,
    )
    if width == 1:
        return out
    weights = log_sums.reshape(-1, num, width).masked_fill(singles.unseen[some], -torch.inf).softmax(dim=-1)
    weighed: torch.Tensor = out.unflatten(0, (num, width)) * weights.permute(1, 2, 0)[..., None]
    return weighed.sum(dim=1).to(q.dtype)


def _attend_chunks(q: torch.Tensor, heads: Heads, chunks: Chunks, kv: KV) -> torch.Tensor:
    return flash(
        q,
        KV(kv.keys[chunks.blocks], kv.values[chunks.blocks]),
        chunks.query_starts,
        chunks.slots,
        chunks.num_keys,
        max_queries=chunks.max_queries,
        max_keys=chunks.max_keys,
        scale=heads.scale,
        is_causal=True,
        window=heads.window,
    )[0]


def flash(
    q: torch.Tensor,
    kv: KV,
    query_starts: torch.Tensor,
    slots: torch.Tensor,
    num_keys: torch.Tensor,
    *,
    max_queries: int,
    max_keys: int,
    scale: float,
    is_causal: bool = False,
    window: int = 0,
) -> tuple[torch.Tensor, torch.Tensor]:
    """torch's kernel: q (T, Hq, D), answers (T, Hq, D) and log-sum-exps (Hq, T) float32.

    Sequence i has the queries query_starts[i] .. query_starts[i + 1], and num_keys[i] keys from slots[i] on.
    All three are int32, the first two one longer than there are sequences. Causal: the last query sees all.
    """
    operator: Any = torch.ops.aten._flash_attention_forward
    out, log_sums, *_ = operator(
        q,
        kv.keys.flatten(0, 1),
        kv.values.flatten(0, 1),
        query_starts,
        slots,
        max_queries,
        max_keys,
        0.0,
        is_causal and not window,
        False,
        scale=scale,
        window_size_left=window - 1 if window else -1,
        window_size_right=0 if is_causal else -1,
        seqused_k=num_keys,
    )
    return out, log_sums
