"""The `/ops` routes of the synthetic server: the served model, and swaps with a duration."""

import asyncio
import time
from typing import Any

import msgspec

from loadgen.selftest.answers import Model

CANDIDATES = {"synthetic-large": (10, 20, 30), "synthetic-small": (10, 20)}


class Operations:
    """Holds the model for new streams. Running streams keep theirs (`finish`)."""

    def __init__(self, swap_ms: float):
        self.model = Model()
        self.decisions: list[dict[str, Any]] = []
        self.held_until = 0.0  # loop time until which no token is made: the gap of a commit
        self._swap_ms = swap_ms
        self._swap: asyncio.Task[None] | None = None

    def swap(self, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        """Begin a swap; returns status and body."""
        candidate = str(body.get("candidate", ""))
        depths = CANDIDATES.get(candidate)
        depth = body.get("depth") or (depths[-1] if depths else 0)
        if depths is None or depth not in depths:
            return 422, {"error": f"no candidate {candidate} at depth {depth}; there are {CANDIDATES}"}
        if self._swap is not None and not self._swap.done():
            return 409, {"error": "a swap is under way"}
        id = f"d{len(self.decisions) + 1}"
        chosen = {"candidate": candidate, "depth": depth}
        decision = {
            "id": id,
            "at": time.time(),
            "by": "loadgen",
            "kind": "swap",
            "chosen": chosen,
            "why": "asked",
        }
        self.decisions.append(decision)
        self._swap = asyncio.create_task(self._carry_out(decision, Model(candidate, depth)))
        return 202, {"decision_id": id}

    async def _carry_out(self, decision: dict[str, Any], model: Model) -> None:
        await asyncio.sleep(self._swap_ms / 1e3)
        self.model = model
        copy_ms = self._swap_ms / 10
        self.held_until = asyncio.get_running_loop().time() + copy_ms / 1e3
        decision["phases_ms"] = {"prepare": self._swap_ms, "commit": copy_ms}
        decision["outcome"] = "committed"

    def state(self, running: int) -> dict[str, Any]:
        shard = {
            "id": 0,
            "state": "serving",
            "model": self.model.name,
            "version": self.model.version,
            "depth": self.model.depth,
            "num_layers": 30,
            "exit_mode": "per_row",
            "running": running,
            "waiting": 0,
            "num_free_blocks": 1000 - running,
            "num_blocks": 1000,
            "heartbeat_age_ms": 1.0,
        }
        candidates = [
            {"candidate": name, "depth": depth, "agreement": 0.97}
            for name, depths in CANDIDATES.items()
            for depth in depths
        ]
        return {
            "deployment": "synthetic",
            "objective": "throughput",
            "shards": [shard],
            "candidates": candidates,
        }

    def find(self, path: str) -> tuple[int, Any]:
        """`/ops/decisions` and `/ops/decisions/ID`."""
        id = path.removeprefix("/ops/decisions").strip("/")
        if not id:
            return 200, self.decisions
        found = [decision for decision in self.decisions if decision["id"] == id]
        return (200, found[0]) if found else (404, {"error": f"no decision {id}"})


def encode(value: Any) -> bytes:
    return msgspec.json.encode(value)
