"""Attention over scattered KV blocks by torch's FlashAttention.

Its kernel takes the start and the number of each sequence's keys; it takes block tables only from torch 2.13
on, in blocks of 256. So decoding passes each block as a separate sequence: KV is read in place, and the
results are combined by their log-sum-exps (flash-decoding, Dao et al. 2023). Longer chunks are bound by
arithmetic: their blocks are gathered first, for some sequences at a time.
"""

from itertools import accumulate, pairwise
from typing import Any

import msgspec
import torch
from torch.nn import functional

from shard.ops.batch import KV, Batch, Heads

DTYPES = (torch.float16, torch.bfloat16)
MAX_HEAD_DIM = 256
MAX_PARTS = 8192  # blocks in one call: enough to fill any GPU; bounds the memory of results
FEW_QUERIES = 4  # queries of a sequence up to which reading its keys per query costs no more than gathering
GATHERED_KEYS = 1 << 16  # gathered at once, unless one sequence has more; bounds memory beside the pools


class Singles(msgspec.Struct, frozen=True):
    """S queries, each over the W blocks of its sequence."""

    rows: torch.Tensor | None  # (S,) indices in the batch; None: all
    part_starts: torch.Tensor  # (S * W + 1,) int32: 0, 1, 2, ...
    slots: torch.Tensor  # (S, W) int32: each block's first visible slot
    num_keys: torch.Tensor  # (S, W) int32: visible keys from there on, 1 if there are none
    unseen: torch.Tensor  # (S, W): blocks without a visible key


class Chunk(msgspec.Struct, frozen=True):
    """Sequences with several queries, with their blocks concatenated."""

    rows: torch.Tensor  # (Q,) indices of their queries in the batch
    query_starts: torch.Tensor  # (C + 1,) int32, among `rows`
    blocks: torch.Tensor  # (P,) int64
    slots: torch.Tensor  # (C + 1,) int32: start of each sequence's keys in the gathered blocks
    num_keys: torch.Tensor  # (C,) int32
    max_queries: int
    max_keys: int


class Plan(msgspec.Struct, frozen=True):
    """A batch's inputs of the kernel, the same in every layer."""

    singles: Singles | None
    chunks: list[Chunk]


def plan_of(batch: Batch, block_size: int, window: int) -> Plan:
    """A plan for pools with this block size; with a window, a query sees that many keys. Does not wait for
    the device while every sequence has one query.
    """
    tables = batch.block_tables[:, : -(-batch.max_keys // block_size)]  # reserved blocks have no keys yet
    if batch.max_queries == 1:
        return Plan(_singles(None, tables, batch.num_keys, block_size, window), [])
    starts, ends = batch.query_starts.tolist(), batch.num_keys.tolist()
    counts = [end - start for start, end in pairwise(starts)]
    few = [(i, query) for i, count in enumerate(counts) if count <= FEW_QUERIES for query in range(count)]
    singles = None
    if few:
        owners, rows = _ints([i for i, _ in few], tables), [starts[i] + query for i, query in few]
        num_keys = [ends[i] - counts[i] + query + 1 for i, query in few]
        singles = _singles(_ints(rows, tables), tables[owners], _ints(num_keys, tables), block_size, window)
    several = [i for i, count in enumerate(counts) if count > FEW_QUERIES]
    groups = _groups([(i, ends[i]) for i in several])
    return Plan(singles, [_chunk(group, tables, starts, ends, block_size) for group in groups])


def attend(q: torch.Tensor, heads: Heads, plan: Plan, kv: KV) -> torch.Tensor:
    """Causal attention, q (T, Hq, D) -> (T, Hq, D), over pools of (num_blocks, block_size, Hkv, D)."""
    if plan.singles is not None and plan.singles.rows is None:
        return _attend_singles(q, heads, plan.singles, kv)
    out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    if plan.singles is not None:
        out[plan.singles.rows] = _attend_singles(q[plan.singles.rows], heads, plan.singles, kv)
    for chunk in plan.chunks:
        out[chunk.rows] = _attend_chunk(q[chunk.rows], heads, chunk, kv)
    return out


def _ints(values: list[int], like: torch.Tensor, dtype: torch.dtype = torch.int64) -> torch.Tensor:
    return torch.tensor(values, dtype=dtype, device=like.device)


def _singles(
    rows: torch.Tensor | None, tables: torch.Tensor, num_keys: torch.Tensor, block_size: int, window: int
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


def _groups(keys: list[tuple[int, int]]) -> list[list[int]]:
    """Groups of sequences to gather at once, by their numbers of keys."""
    groups: list[list[int]] = []
    num_keys = 0
    for i, count in keys:
        if not groups or num_keys + count > GATHERED_KEYS:
            groups.append([])
            num_keys = 0
        groups[-1].append(i)
        num_keys += count
    return groups


def _chunk(
    group: list[int], tables: torch.Tensor, starts: list[int], ends: list[int], block_size: int
) -> Chunk:
    counts = [starts[i + 1] - starts[i] for i in group]
    num_blocks = [-(-ends[i] // block_size) for i in group]
    owners = [i for i, num in zip(group, num_blocks, strict=True) for _ in range(num)]
    return Chunk(
        _ints([row for i in group for row in range(starts[i], starts[i + 1])], tables),
        _ints([0, *accumulate(counts)], tables, torch.int32),
        tables[
            _ints(owners, tables), _ints([nth for num in num_blocks for nth in range(num)], tables)
        ].long(),
        _ints([0, *accumulate(num * block_size for num in num_blocks)], tables, torch.int32),
        _ints([ends[i] for i in group], tables, torch.int32),
        max(counts),
        max(ends[i] for i in group),
    )


def _attend_singles(q: torch.Tensor, heads: Heads, singles: Singles, kv: KV) -> torch.Tensor:
    """(S, Hq, D) -> (S, Hq, D); some queries at a time if there are very many blocks."""
    count = max(1, MAX_PARTS // singles.slots.shape[1])
    pieces = [_attend_some(q, heads, singles, kv, slice(at, at + count)) for at in range(0, len(q), count)]
    return pieces[0] if len(pieces) == 1 else torch.cat(pieces)


def _attend_some(q: torch.Tensor, heads: Heads, singles: Singles, kv: KV, some: slice) -> torch.Tensor:
    """Attention of queries to each block, then combined over blocks."""
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


def _attend_chunk(q: torch.Tensor, heads: Heads, chunk: Chunk, kv: KV) -> torch.Tensor:
    return flash(
        q,
        KV(kv.keys[chunk.blocks], kv.values[chunk.blocks]),
        chunk.query_starts,
        chunk.slots,
        chunk.num_keys,
        max_queries=chunk.max_queries,
        max_keys=chunk.max_keys,
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
    operator: Any = torch.ops.aten._flash_attention_forward  # noqa: SLF001
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
