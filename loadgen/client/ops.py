"""The `/ops` routes of Helios, as a load generator uses them: look, swap, read decisions."""

import asyncio
from datetime import datetime
from time import monotonic
from typing import Any

import msgspec

from loadgen.client.client import Client, Fetched


class Decision(msgspec.Struct, frozen=True):
    """One entry of the server's diary. `at_s` is in seconds since the epoch."""

    id: str
    at_s: float
    by: str
    kind: str
    chosen: str
    why: str
    outcome: str  # empty while it is under way
    phases_ms: dict[str, float] = {}
    error: str = ""


class Operator:
    """Speaks to `/ops` with the admin key. Where there is no such route, answers are None or empty."""

    def __init__(self, client: Client, admin_key: str | None):
        self._client = client
        self._headers = {"authorization": f"Bearer {admin_key}"} if admin_key else {}

    async def state(self) -> dict[str, Any] | None:
        value = (await self._get("/ops/state")).json()
        return value if isinstance(value, dict) and "shards" in value else None

    async def decisions(self, since_s: float) -> list[Decision]:
        """Decisions made since a time of the epoch, the oldest first."""
        value = (await self._get("/ops/decisions?limit=1000")).json()
        found = value.get("decisions", []) if isinstance(value, dict) else value
        if not isinstance(found, list):
            return []
        decisions = [_decision(item) for item in found if isinstance(item, dict)]
        return sorted((d for d in decisions if d.at_s >= since_s), key=lambda decision: decision.at_s)

    async def swap(self, candidate: str, depth: int | None, inflight: str | None = None) -> Fetched:
        """Ask for a swap; status 202 and `decision_id` when it has begun."""
        wish = {"candidate": candidate, "depth": depth, "inflight": inflight}
        body = {name: value for name, value in wish.items() if value is not None}
        return await self._client.fetch("POST", "/ops/swap", body, self._headers)

    async def outcome(self, decision_id: str, patience_s: float) -> Decision | None:
        """A decision once it is over; None if it is not over in time."""
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
    """`candidate@depth`, whatever shape it comes in."""
    if not isinstance(chosen, dict):
        return str(chosen or "")
    if isinstance(chosen.get("prompts"), dict):  # several, each for one kind of prompts
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
