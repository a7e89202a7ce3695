"""FlashAttention's kernel as its sources say it behaves, on any device and in any dtype.

It checks what the kernel checks, and reads of the starts of keys only what the kernel reads: the next start
is not where a sequence's keys end.
"""

import torch

from shard.ops.batch import KV


def fake_flash(
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
    """See `shard.ops.flash.flash`."""
    keys, values = kv.keys.flatten(0, 1), kv.values.flatten(0, 1)
    for ints in (query_starts, slots, num_keys):
        assert ints.dtype == torch.int32 and ints.is_contiguous()
    assert len(query_starts) == len(slots) == len(num_keys) + 1 > 1
    assert len(num_keys) <= 65_535
    assert q.stride(-1) == keys.stride(-1) == values.stride(-1) == 1
    assert q.shape[-1] % 8 == 0 and q.shape[-1] <= 256 and q.shape[1] % keys.shape[1] == 0
    out = torch.full(q.shape, torch.nan, dtype=q.dtype, device=q.device)
    log_sums = torch.full((q.shape[1], len(q)), torch.nan, device=q.device)
    starts = query_starts.tolist()
    for i, (slot, count) in enumerate(zip(slots.tolist(), num_keys.tolist(), strict=False)):
        rows = slice(starts[i], starts[i + 1])
        assert 0 < count <= max_keys and slot + count <= len(keys) and rows.stop - rows.start <= max_queries
        out[rows], log_sums[:, rows] = _attend(
            q[rows], keys[slot : slot + count], values[slot : slot + count], scale, is_causal, window
        )
    return out, log_sums


def _attend(
    q: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, scale: float, is_causal: bool, window: int
) -> tuple[torch.Tensor, torch.Tensor]:
    ratio = q.shape[1] // keys.shape[1]
    keys, values = (each.float().repeat_interleave(ratio, dim=1) for each in (keys, values))
    scores = torch.einsum("qhd,khd->hqk", q.float(), keys) * scale
    if is_causal:
        own = torch.arange(len(keys) - len(q), len(keys), device=q.device)[:, None]
        at = torch.arange(len(keys), device=q.device)
        scores.masked_fill_((at > own) | (bool(window) & (at <= own - window)), -torch.inf)
    return torch.einsum("hqk,khd->qhd", scores.softmax(-1), values).to(q.dtype), scores.logsumexp(-1)
