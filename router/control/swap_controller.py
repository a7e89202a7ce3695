"""Carries out decisions of the loop or an operator, one change per shard at a time, and records each."""

import asyncio
import logging
import time
from typing import Any

import msgspec

from router.catalog.catalog import Catalog
from router.catalog.repository import Choice
from router.catalog.served_model import Target
from router.fleet.dispatcher import Dispatcher
from router.fleet.swap import NotUndone, SwapError, SwapOptions, SwapRefused, SwapResult
from telemetry import tasks
from telemetry.audit import AuditLog, Decision, Outcome, new_id
from telemetry.snapshot import ThresholdSetting

log = logging.getLogger(__name__)


class ChangeRequest(msgspec.Struct, frozen=True, kw_only=True):
    """A requested change, with what to record about it."""

    kind: str  # swap | pin | rollback, or the loop's own
    by: str
    why: str
    to: Choice | Target
    origin: str = ""
    options: SwapOptions
    shard: int | None = None  # None: all
    layout: dict[int, Choice] = {}  # instead of `shard`: several, with a choice for each
    split: dict[str, Choice] = {}  # choice for each class of prompts; {}: `to` for all
    spread: dict[int, Choice] = {}  # of a split: every shard's choice, changed or not
    seen: dict[str, Any] = {}
    considered: list[dict[str, Any]] = []

    @property
    def chosen(self) -> dict[str, Any]:
        """The requested choices and shards, for the audit log."""
        if self.split:
            prompts = {name: str(choice) for name, choice in self.split.items()}
            return {"prompts": prompts, "shards": _by_choice(self.spread)}
        return _named(self.to) | ({} if self.shard is None else {"shard": self.shard})


class SwapController:
    """Runs swaps, records their decisions, and knows the operator's pin."""

    def __init__(self, dispatcher: Dispatcher, catalog: Catalog, audit: AuditLog):
        self.catalog = catalog
        self.pinned: Choice | None = None
        self.threshold = ThresholdSetting()
        self._dispatcher = dispatcher
        self._audit = audit
        self._busy: set[int] = set()  # shards being changed
        self._tasks: set[asyncio.Task[Decision]] = set()

    def begin(self, change: ChangeRequest) -> str:
        """Start a change; returns its decision's id.

        Raises `SwapRefused` when a shard is being changed or does not serve, `KeyError` for an unknown shard.
        """
        shards = self._claim(change)
        decision = self._write_down(change)
        task = tasks.begin(self._perform(decision, change, shards), f"Decision {decision.id}")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return decision.id

    async def carry_out(self, change: ChangeRequest) -> Decision:
        """Carry out a change; returns the decision with its outcome. Raises as `begin`."""
        shards = self._claim(change)
        return await self._perform(self._write_down(change), change, shards)

    def pin(self, change: ChangeRequest) -> str:
        """Make a change and keep the loop from changing anything until `unpin`. Raises as `begin`."""
        if not isinstance(change.to, Choice) or not self._serves_everywhere(change.to):
            return self.begin(change)
        self.pinned = change.to
        why = f"{change.why} It is what serves."
        return self.note(change.kind, change.by, why, origin=change.origin, chosen=_named(change.to))

    def unpin(self, by: str, origin: str = "") -> str:
        """Let the loop choose again."""
        was, self.pinned = self.pinned, None
        why = "Nothing was pinned." if was is None else f"{was} was pinned."
        return self.note("unpin", by, why, origin=origin)

    def set_threshold(self, value: float | None, by: str, origin: str = "") -> str:
        """Set the exit threshold of requests that give none; None: each exit's own."""
        was, self._dispatcher.exit_threshold = self._dispatcher.exit_threshold, value
        why = f"An operator set it; before, it was {was if was is not None else 'that of each exit'}."
        id = self.note("threshold", by, why, origin=origin, chosen={"threshold": value})
        self.threshold = ThresholdSetting(value, by, id)
        return id

    def before(self, shard: int | None) -> Target:
        """The previous target. Raises `SwapRefused` when there is none, `KeyError` for an unknown shard."""
        target, before = self._dispatcher.targets(shard)[0]
        if before is None:
            raise SwapRefused(f"There is nothing to go back to: it started with {target.name}.")
        return before

    def note(self, kind: str, by: str, why: str, **more: Any) -> str:
        """Record a decision that took effect at once; returns its id."""
        at = time.time()
        outcome = Outcome.COMMITTED
        self._audit.append(Decision(id=new_id(at), at=at, kind=kind, by=by, why=why, outcome=outcome, **more))
        return self._audit.latest()[0].id

    async def stop(self) -> None:
        """Wait for changes under way, which end soon once the dispatcher stops."""
        if not await tasks.ended(self._tasks, tasks.END_TIMEOUT_S):
            await tasks.cancel(*self._tasks)

    def _claim(self, change: ChangeRequest) -> frozenset[int]:
        """Mark the shards of a change as busy, and return them."""
        named = tuple(change.layout) or (change.shard,)
        shards = frozenset(index for shard in named for index in self._dispatcher.check_swappable(shard))
        if shards & self._busy:
            raise SwapRefused("A change is under way; one is carried out at a time.")
        self._busy |= shards
        return shards

    def _write_down(self, change: ChangeRequest) -> Decision:
        at = time.time()
        decision = Decision(
            id=new_id(at),
            at=at,
            kind=change.kind,
            by=change.by,
            origin=change.origin,
            seen=change.seen,
            considered=change.considered,
            chosen=change.chosen,
            why=change.why,
        )
        self._audit.append(decision)
        return decision

    async def _perform(self, decision: Decision, change: ChangeRequest, shards: frozenset[int]) -> Decision:
        try:
            layout = {shard: change.layout.get(shard, change.to) for shard in sorted(shards)}
            targets = {shard: await self._target(to) for shard, to in layout.items()}
            done = await self._dispatcher.swap(targets, change.options)
        except SwapRefused as error:
            return self._give_up(decision, Outcome.REFUSED, str(error))
        except NotUndone as error:
            return self._give_up(decision, Outcome.FAILED, str(error))
        except (SwapError, OSError) as error:
            return self._give_up(decision, Outcome.ROLLED_BACK, str(error))
        except Exception as error:
            log.exception("%s to %s failed.", decision.kind, decision.chosen)
            return self._give_up(decision, Outcome.FAILED, f"The router failed: {error!r}")
        finally:
            self._busy -= shards
        if change.kind == "pin" and isinstance(change.to, Choice):
            self.pinned = change.to
        cost = {
            "migrated_requests": float(sum(result.num_migrated for result in done)),
            "kept_cache_tokens": float(sum(result.num_kept_tokens for result in done)),
            "dropped_cache_tokens": float(sum(result.num_dropped_tokens for result in done)),
        }
        return self._audit.update(decision.id, outcome=Outcome.COMMITTED, phases_ms=_slowest(done), cost=cost)

    async def _target(self, to: Choice | Target) -> Target:
        return to if isinstance(to, Target) else await self.catalog.target(to)

    def _give_up(self, decision: Decision, outcome: Outcome, error: str) -> Decision:
        log.warning("%s to %s came to nothing: %s", decision.kind, decision.chosen, error)
        return self._audit.update(decision.id, outcome=outcome, error=error)

    def _serves_everywhere(self, choice: Choice) -> bool:
        shards = self._dispatcher.state().shards
        return all((shard.model, shard.depth) == (choice.candidate, choice.depth) for shard in shards)


def _named(to: Choice | Target) -> dict[str, Any]:
    if isinstance(to, Choice):
        return {"candidate": to.candidate, "depth": to.depth}
    return {"candidate": to.name, "depth": to.config.num_layers}


def _by_choice(layout: dict[int, Choice]) -> dict[str, list[int]]:
    shards: dict[str, list[int]] = {}
    for shard, choice in layout.items():
        shards.setdefault(str(choice), []).append(shard)
    return shards


def _slowest(done: list[SwapResult]) -> dict[str, float]:
    """The longest time of each phase among the shards."""
    phases: dict[str, float] = {}
    for result in done:
        for phase, ms in result.phases_ms.items():
            phases[phase] = max(phases.get(phase, 0.0), ms)
    return phases
