"""One process per device: weights, paged KV cache and early-exit decoding; and the same from Python."""

from typing import Any

__all__ = ["OfflineEngine"]


def __getattr__(name: str) -> Any:
    """`OfflineEngine` when it is asked for: it brings torch, which the router never loads."""
    if name == "OfflineEngine":
        from shard.offline import OfflineEngine

        return OfflineEngine
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
