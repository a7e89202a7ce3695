"""The shard: one process per device, with weights, paged KV cache and early exits. Also a Python API."""

from typing import Any

__all__ = ["OfflineEngine"]


def __getattr__(name: str) -> Any:
    """Import `OfflineEngine` on first use, since it imports torch, which the router never loads."""
    if name == "OfflineEngine":
        from shard.offline import OfflineEngine

        return OfflineEngine
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
