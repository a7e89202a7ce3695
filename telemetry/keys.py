"""All Redis keys, with their lifetimes and bounds.

A deployment's keys share a hash tag, so that one pipeline may touch them all in a cluster too.
"""

HOUR_S = 3600
DAY_S = 24 * HOUR_S

ROUTERS_TTL_S = HOUR_S
WINDOWS_TTL_S = HOUR_S
SNAPSHOT_TTL_S = HOUR_S
HISTORY_TTL_S = 30 * DAY_S
DECISIONS_TTL_S = 30 * DAY_S

MAX_WINDOW_ENTRIES = 3600
MAX_TICK_ENTRIES = 120  # two minutes: an overview looks back one
MAX_WINDOW_BYTES = 32 * 1024 * 1024  # approximate size of one router's stream
MAX_DECISIONS = 10_000


def routers(deployment: str) -> str:
    """Sorted set: routers by when they last wrote, Unix time in seconds."""
    return _key(deployment, "routers")


def windows(deployment: str, router: str) -> str:
    """Stream: windows of a router's shards, one entry per flush; `d` is a list of records in MessagePack."""
    return _key(deployment, f"windows:{router}")


def ticks(deployment: str, router: str) -> str:
    """Stream: of each entry of `windows`, its tick in MessagePack (`telemetry/tick.py`), by the same id."""
    return _key(deployment, f"ticks:{router}")


def rollup(deployment: str, step_s: int, number: int) -> str:
    """Hash: sums of windows in MessagePack (`telemetry/rollup.py`), one field per step and router."""
    return _key(deployment, f"rollup:{step_s}:{number}")


def snapshot(deployment: str, router: str) -> str:
    """String: a router's last snapshot in MessagePack (`telemetry/snapshot.py`)."""
    return _key(deployment, f"snapshot:{router}")


def history(deployment: str) -> str:
    """Hash: the Performance History Table, one field per candidate, depth and class; rows as JSON."""
    return _key(deployment, "history")


def decisions(deployment: str) -> str:
    """Stream: the audit log; `d` is a decision in JSON. A later entry with the same `id` replaces it."""
    return _key(deployment, "decisions")


def _key(deployment: str, name: str) -> str:
    return f"{{helios:{deployment}}}:{name}"
