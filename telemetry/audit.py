"""The audit log: every decision with its observations, alternatives, reason, cost and outcome.

Pure: `Store` writes it to Redis and reads it back.
"""

import enum
import secrets
from collections import deque
from collections.abc import Iterable
from typing import Any

import msgspec

MAX_KEPT = 512  # decisions in memory
ENTRIES_PER_DECISION = 4  # begun, under way, done; one to spare
_ID_DIGITS = 13  # milliseconds of Unix time until the year 2286


class Outcome(enum.StrEnum):
    """The outcome of a decision."""

    COMMITTED = "committed"
    ROLLED_BACK = "rolled_back"
    FAILED = "failed"  # and not rolled back: shards may serve different models, which the error names
    REFUSED = "refused"


class Decision(msgspec.Struct, frozen=True, kw_only=True):
    """A decision in the audit log and in `/ops`. `seen`, `considered` and `chosen` have no fixed fields."""

    id: str
    at: float  # Unix time in seconds
    kind: str  # such as evaluate, swap, deepen, stay, pin, unpin, rollback, drain
    by: str = "loop"  # or an operator: USER@HOST if the client said so, else the name of the key
    origin: str = ""  # address that an operator's command came from
    seen: dict[str, Any] = {}
    considered: list[dict[str, Any]] = []
    chosen: dict[str, Any] = {}
    why: str = ""  # a sentence for the operator
    cost: dict[str, float] = {}
    phases_ms: dict[str, float] = {}
    outcome: Outcome | None = None  # None: it is under way
    error: str | None = None
    router: str = ""  # HOST-PROCESS of the router that took the decision


def new_id(at: float) -> str:
    """A unique id, also among routers; ids sort by time."""
    return f"{int(at * 1000):0{_ID_DIGITS}d}-{secrets.token_hex(3)}"


def time_of(id: str) -> float | None:
    """Time of the decision, Unix time in seconds; None for an invalid id."""
    ms, _, rest = id.partition("-")
    return int(ms) / 1000 if ms.isdecimal() and len(ms) == _ID_DIGITS and rest else None


class AuditLog:
    """The latest decisions of this router, readable also without Redis; `Store` writes them to Redis.

    Each change of a decision is an entry of the stream: a router that dies while it carries one out
    leaves it without an outcome there.
    """

    def __init__(self, router: str = "", max_kept: int = MAX_KEPT):
        self.num_dropped = 0  # entries lost since the start
        self._router = router
        self._max_kept = max_kept
        self._kept: dict[str, Decision] = {}  # by id, oldest first
        self._unwritten: deque[Decision] = deque()

    def append(self, decision: Decision) -> None:
        """Record a new decision, or the outcome of another router's."""
        if not decision.router:
            decision = msgspec.structs.replace(decision, router=self._router)
        self._kept[decision.id] = decision
        self._forget_old()
        self._note(decision)

    def update(self, id: str, **changes: Any) -> Decision:
        """Update fields of a decision. Raises `KeyError` if it is unknown or forgotten."""
        decision = msgspec.structs.replace(self._kept[id], **changes)
        self._kept[id] = decision
        self._note(decision)
        return decision

    def _forget_old(self) -> None:
        """Drop the oldest decisions. Up to twice as many are kept while their outcome is pending."""
        while len(self._kept) > self._max_kept:
            settled = (id for id, kept in self._kept.items() if kept.outcome is not None)
            oldest = next(settled, None)
            if oldest is None and len(self._kept) <= 2 * self._max_kept:
                return
            del self._kept[oldest or next(iter(self._kept))]

    def find(self, id: str) -> Decision | None:
        return self._kept.get(id)

    def latest(self) -> list[Decision]:
        """All kept decisions, the latest first."""
        return list(reversed(self._kept.values()))

    def unwritten(self) -> list[Decision]:
        """Decisions not yet written to Redis, in order."""
        return list(self._unwritten)

    def written(self, decisions: list[Decision]) -> None:
        """Mark decisions as written."""
        done = {id(decision) for decision in decisions}
        self._unwritten = deque(decision for decision in self._unwritten if id(decision) not in done)

    def write_again(self) -> None:
        """Mark all decisions as unwritten, after Redis has lost its data."""
        late = [decision for decision in self._unwritten if decision.id not in self._kept]
        self._unwritten = deque([*late, *self._kept.values()])

    def _note(self, decision: Decision) -> None:
        self._unwritten.append(decision)
        while len(self._unwritten) > ENTRIES_PER_DECISION * self._max_kept:
            self._unwritten.popleft()
            self.num_dropped += 1


def encode(decision: Decision) -> bytes:
    return msgspec.json.encode(decision)


def decode(data: bytes) -> Decision | None:
    """An entry of Redis; None for another version's format."""
    try:
        return msgspec.json.decode(data, type=Decision)
    except msgspec.MsgspecError:
        return None


def settled(entries: Iterable[Decision]) -> list[Decision]:
    """Decisions by their last entry, from entries in order; the latest decision first."""
    found = {decision.id: decision for decision in entries}
    return sorted(found.values(), key=lambda decision: decision.id, reverse=True)
