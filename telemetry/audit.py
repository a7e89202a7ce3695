"""The audit stream: every decision, with what it saw and weighed, why, at what cost, and what came of it."""

import enum
import secrets
from typing import Any

import msgspec


class Outcome(enum.StrEnum):
    """What came of a decision."""

    PENDING = "pending"
    COMMITTED = "committed"
    ROLLED_BACK = "rolled_back"
    REFUSED = "refused"
    STAYED = "stayed"  # decided to change nothing


class Decision(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One entry. What is in `seen`, `considered` and `chosen` is the decider's own, as JSON has it."""

    id: str
    at: float  # Unix time in seconds
    kind: str  # such as evaluate, swap, deepen, stay, pin, unpin, rollback, drain
    by: str = "loop"  # or the name of a person
    seen: dict[str, Any] = {}
    considered: list[dict[str, Any]] = []
    chosen: dict[str, Any] = {}
    why: str = ""  # a sentence for a person
    cost: dict[str, float] = {}
    phases_ms: dict[str, float] = {}
    outcome: Outcome = Outcome.PENDING
    error: str | None = None


def new_id(at: float) -> str:
    """Unlike any other, also of other routers; ids sort by time."""
    return f"{int(at * 1000):013d}-{secrets.token_hex(3)}"
