"""Divides a shard's memory among its loaded models. Pure; knows no device.

The total is the first model's weights and KV cache at its start. A shallower model, and a model that ends,
leave more of it to blocks. No byte is allotted twice.
"""

from collections.abc import Hashable, Iterable, Mapping

import msgspec

Weights = Mapping[Hashable, int]  # bytes by part; a part shared by two models is stored once


class Claim(msgspec.Struct, frozen=True):
    """Memory requirements of one model."""

    weights: Weights
    block_bytes: int
    num_least: int  # blocks: the minimum to continue
    num_wanted: int  # blocks: the largest useful number


def weight_bytes(held: Iterable[Weights]) -> int:
    """Bytes of all weights together, shared parts counted once."""
    parts: dict[Hashable, int] = {}
    for weights in held:
        parts |= weights
    return sum(parts.values())


def share_out(claims: list[Claim], total_bytes: int) -> list[int] | None:
    """Blocks for each claim, older ones first; None if not all fit.

    Every claim gets its minimum before any gets more.
    """
    left = total_bytes - weight_bytes(claim.weights for claim in claims)
    left -= sum(claim.num_least * claim.block_bytes for claim in claims)
    if left < 0:
        return None
    shares = []
    for claim in claims:
        more = min(max(0, claim.num_wanted - claim.num_least), left // claim.block_bytes)
        left -= more * claim.block_bytes
        shares.append(claim.num_least + more)
    return shares
