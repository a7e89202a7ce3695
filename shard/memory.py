"""How the memory of a shard is shared out among the models that live on it. Pure; knows no device.

The total is what the first model took at its start: its weights and its KV cache. A shallower model leaves
more of it to blocks, and so does a model that ends. No byte is promised twice.
"""

from collections.abc import Hashable, Iterable, Mapping

import msgspec

Weights = Mapping[Hashable, int]  # bytes by part; the same part in two models is there once


class Claim(msgspec.Struct, frozen=True):
    """What one model asks for."""

    weights: Weights
    block_bytes: int
    num_least: int  # blocks; with fewer it could not go on
    num_wanted: int  # blocks; more are of no use to it


def weight_bytes(held: Iterable[Weights]) -> int:
    """Bytes of all weights together, what is shared counted once."""
    parts: dict[Hashable, int] = {}
    for weights in held:
        parts |= weights
    return sum(parts.values())


def share_out(claims: list[Claim], total_bytes: int) -> list[int] | None:
    """Blocks for each claim, those of older ones served before those of newer ones; None if all cannot live.

    Every one gets its least before any gets more.
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
