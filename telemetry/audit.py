"""The audit stream: every decision, with what it saw and weighed, why, at what cost, and what came of it.

Pure: `Store` takes it to Redis and back.
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
    """What came of a decision."""

    COMMITTED = "committed"
    ROLLED_BACK = "rolled_back"
    FAILED = "failed"  # and could not be rolled back: shards may serve different models, the error says which
    REFUSED = "refused"


class Decision(msgspec.Struct, frozen=True, kw_only=True):
    """A decision in the audit log and in `/ops`. `seen`, `considered` and `chosen` are the decider's own."""

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
    outcome: Outcome | None = None  # None: it is under way
    error: str | None = None
    router: str = ""  # HOST-PROCESS of the router that took the decision


def new_id(at: float) -> str:
    """Unlike any other, also of other routers; ids sort by time."""
    return f"{int(at * 1000):0{_ID_DIGITS}d}-{secrets.token_hex(3)}"


def time_of(id: str) -> float | None:
    """When the decision was taken, Unix time in seconds; None if it is no id."""
    ms, _, rest = id.partition("-")
    return int(ms) / 1000 if ms.isdecimal() and len(ms) == _ID_DIGITS and rest else None


class AuditLog:
    """The latest decisions of this router, readable whether Redis is there or not; `Store` writes them there.

    Each change of a decision is an entry of the stream: a router that dies in the middle of carrying one out
    leaves it without an outcome there.
    """

    def __init__(self, router: str = "", max_kept: int = MAX_KEPT):
        self.num_dropped = 0  # entries that were never written, ever
        self._router = router
        self._max_kept = max_kept
        self._kept: dict[str, Decision] = {}  # by id, oldest first
        self._unwritten: deque[Decision] = deque()

    def append(self, decision: Decision) -> None:
        """Write down a new decision, or what came of another router's."""
        if not decision.router:
            decision = msgspec.structs.replace(decision, router=self._router)
        self._kept[decision.id] = decision
        self._forget_old()
        self._note(decision)

    def update(self, id: str, **changes: Any) -> Decision:
        """Say what came of a decision, by the names of its fields. `KeyError`: it was long ago, or never."""
        decision = msgspec.structs.replace(self._kept[id], **changes)
        self._kept[id] = decision
        self._note(decision)
        return decision

    def _forget_old(self) -> None:
        """The oldest go, but for those whose outcome is to come, of which twice as many are kept."""
        while len(self._kept) > self._max_kept:
            settled = (id for id, kept in self._kept.items() if kept.outcome is not None)
            oldest = next(settled, None)
            if oldest is None and len(self._kept) <= 2 * self._max_kept:
                return
            del self._kept[oldest or next(iter(self._kept))]

    def find(self, id: str) -> Decision | None:
        return self._kept.get(id)

    def latest(self) -> list[Decision]:
        """All that are kept, the latest first."""
        return list(reversed(self._kept.values()))

    def unwritten(self) -> list[Decision]:
        """What Redis has not been given yet, in order."""
        return list(self._unwritten)

    def written(self, decisions: list[Decision]) -> None:
        """Redis has them."""
        done = {id(decision) for decision in decisions}
        self._unwritten = deque(decision for decision in self._unwritten if id(decision) not in done)

    def write_again(self) -> None:
        """Redis has lost everything."""
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
    """None for what another version of this program wrote."""
    try:
        return msgspec.json.decode(data, type=Decision)
    except msgspec.MsgspecError:
        return None


def settled(entries: Iterable[Decision]) -> list[Decision]:
    """Each decision as of its last entry of those given in order; the latest decision first."""
    found = {decision.id: decision for decision in entries}
    return sorted(found.values(), key=lambda decision: decision.id, reverse=True)
