"""A client of Helios' `/ops` routes: state, swaps, decisions."""

import asyncio
from datetime import datetime
from time import monotonic
from typing import Any

import msgspec

from loadgen.client.client import Client, Fetched


class Decision(msgspec.Struct, frozen=True):
    """One decision in the server's audit log. `at_s` is in seconds since the epoch."""

    id: str
    at_s: float
    by: str
    kind: str
    chosen: str
    why: str
    outcome: str  # empty while under way
    phases_ms: dict[str, float] = {}
    error: str = ""


class Operator:
    """Calls `/ops` with the admin key. Without such routes, results are None or empty."""

    def __init__(self, client: Client, admin_key: str | None):
        self._client = client
        self._headers = {"authorization": f"Bearer {admin_key}"} if admin_key else {}

    async def state(self) -> dict[str, Any] | None:
        value = (await self._get("/ops/state")).json()
        return value if isinstance(value, dict) and "shards" in value else None

    async def decisions(self, since_s: float) -> list[Decision]:
        """Decisions since a time of the epoch, the oldest first."""
        value = (await self._get("/ops/decisions?limit=1000")).json()
        found = value.get("decisions", []) if isinstance(value, dict) else value
        if not isinstance(found, list):
            return []
        decisions = [_decision(item) for item in found if isinstance(item, dict)]
        return sorted((d for d in decisions if d.at_s >= since_s), key=lambda decision: decision.at_s)

    async def swap(self, candidate: str, depth: int | None, inflight: str | None = None) -> Fetched:
        """Request a swap; status 202 and `decision_id` if it has begun."""
        fields = {"candidate": candidate, "depth": depth, "inflight": inflight}
        body = {name: value for name, value in fields.items() if value is not None}
        return await self._client.fetch("POST", "/ops/swap", body, self._headers)

    async def outcome(self, decision_id: str, patience_s: float) -> Decision | None:
        """Wait for a decision's outcome; None on timeout."""
        give_up = monotonic() + patience_s
        while monotonic() < give_up:
            value = (await self._get(f"/ops/decisions/{decision_id}")).json()
            if isinstance(value, dict) and value.get("outcome"):
                return _decision(value)
            await asyncio.sleep(0.05)
        return None

    async def _get(self, path: str) -> Fetched:
        return await self._client.fetch("GET", path, headers=self._headers)


def _decision(item: dict[str, Any]) -> Decision:
    phases = item.get("phases_ms")
    return Decision(
        id=str(item.get("id", "")),
        at_s=_epoch(item.get("at")),
        by=str(item.get("by", "")),
        kind=str(item.get("kind", "")),
        chosen=_choice(item.get("chosen")),
        why=str(item.get("why") or ""),
        outcome=str(item.get("outcome") or ""),
        phases_ms={k: float(v) for k, v in phases.items() if v is not None}
        if isinstance(phases, dict)
        else {},
        error=str(item.get("error") or ""),
    )


def _choice(chosen: Any) -> str:
    """`candidate@depth`, from any shape of the field."""
    if not isinstance(chosen, dict):
        return str(chosen or "")
    if isinstance(chosen.get("prompts"), dict):  # a split: one for each class of prompts
        return ", ".join(f"{choice} for {prompts}" for prompts, choice in chosen["prompts"].items())
    name, depth = chosen.get("candidate") or chosen.get("model") or "", chosen.get("depth")
    return f"{name}@{depth}" if depth else str(name)


def _epoch(at: Any) -> float:
    """Seconds since the epoch, from a number (of seconds or milliseconds) or an ISO date."""
    if isinstance(at, str):
        try:
            return datetime.fromisoformat(at).timestamp()
        except ValueError:
            return 0.0
    value = float(at or 0)
    return value / 1e3 if value > 1e11 else value
