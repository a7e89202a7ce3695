"""The loop of reassessment: reads telemetry, decides, has it carried out, writes it down.

What it decides is the policy's (router/policy); how a change is made is the conductor's. While Redis is away
it changes nothing, and says so.
"""

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import msgspec

from router.catalog.profile import Facts
from router.catalog.repository import Choice, Repository
from router.catalog.served_model import Generation
from router.control.loop_observer import Listener
from router.control.swap_controller import Conductor, Order
from router.fleet.swap import SwapRefused, Wish
from router.policy.decision import Decision, Kind
from router.policy.observation import Device
from router.policy.reassessor import Now, Reassessor
from router.policy.weighing import UNITS
from telemetry import tasks
from telemetry.audit import Outcome
from telemetry.sample import Record, Window
from telemetry.store import Store

log = logging.getLogger(__name__)

_PAUSE_S = 1.0  # between two decisions
_CUT_S = 1.0  # telemetry is cut into seconds


class LoopState(msgspec.Struct, frozen=True):
    """What `/ops/state` shows of the loop."""

    state: str  # watching | trying | holding | off
    serving: str | None
    trying: str | None
    why: str  # of the last decision, or why it holds still
    num_requests: int  # answered so far


class _Sum(msgspec.Struct):
    """Telemetry of a choice since `since_s`, as far as it was read."""

    since_s: float
    window: Window
    read_s: float


class Loop:
    """`start` once a shard serves, `stop` when the shards have ended. `listener` is to observe meanwhile."""

    def __init__(
        self,
        repository: Repository,
        facts: dict[str, Facts],
        conductor: Conductor,
        store: Store,
        wish: Wish,
        watts: float | None = None,
        unix_s: Callable[[], float] = time.time,
    ):
        self.listener = Listener(self._open_mind)
        self._repository = repository
        self._facts = facts
        self._conductor = conductor
        self._store = store
        self._wish = wish
        self._watts = watts
        self._unix_s = unix_s
        self._sums: dict[Choice, _Sum] = {}
        self._task: asyncio.Task[None] | None = None
        self._holds = ""  # why it changes nothing
        self._last = ("", "")  # what was decided last, and why

    def start(self) -> None:
        """Nothing to do where there is nothing to choose."""
        num_choices = sum(len(facts.choices) for facts in self._facts.values())
        if self._repository.loop.enabled and num_choices > 1:
            self._task = tasks.begin(self._run(), "Reassessment")

    async def stop(self) -> None:
        if self._task is not None:
            await tasks.cancel(self._task)

    @property
    def state(self) -> LoopState:
        mind = self.listener.mind
        if self._task is None or mind is None:
            return LoopState("off", None, None, "There is nothing to choose.", 0)
        state = "holding" if self._holds else "trying" if mind.trying else "watching"
        trying = None if mind.trying is None else str(mind.trying)
        return LoopState(state, _served(mind), trying, self._holds or self._last[1], mind.watch.num_requests)

    async def _run(self) -> None:
        while True:
            await self.listener.woken.wait()
            self.listener.woken.clear()
            try:
                await self.reassess()
            except Exception:
                log.exception("Reassessment failed; serving goes on as it is.")
            await asyncio.sleep(_PAUSE_S)

    async def reassess(self) -> None:
        """Look, decide, and have it carried out."""
        mind = self.listener.mind
        if mind is None:
            return
        windows = await self._windows(mind)
        if windows is None:
            self._hold("Redis is away: nothing is changed until it is back.")
            return
        self._let_go()
        self._follow(mind)
        mind.learn(self._store.history, windows, self._now())
        decision = mind.decide(self._store.history, self._now())
        self._conductor.route(mind.admitted)
        await self._carry_out(mind, decision)

    async def _windows(self, mind: Reassessor) -> dict[Choice, Window] | None:
        """What was measured of what serves, and of what is tried; None while Redis is away."""
        choices = [*mind.served, *([mind.trying] if mind.trying is not None else [])]
        self._sums = {choice: self._sum(choice, mind.since_s(choice)) for choice in choices}
        await self._store.flush()
        unread_s = min(sum.read_s for sum in self._sums.values())
        records = await self._store.records(self._unix_s() - unread_s + _CUT_S)
        if records is None:
            return None
        for choice, sum in self._sums.items():
            self._read_on(choice, sum, records)
        return {choice: sum.window for choice, sum in self._sums.items()}

    def _sum(self, choice: Choice, since_s: float) -> _Sum:
        """What was read so far, unless it tells of other times."""
        known = self._sums.get(choice)
        if known is not None and known.since_s == since_s:
            return known
        return _Sum(since_s, Window(), since_s + _CUT_S / 2)

    def _read_on(self, choice: Choice, sum: _Sum, records: list[Record]) -> None:
        """Add what is new, of this router's shards: another's traffic may be another."""
        late = [record for record in records if record.window.end > sum.read_s]
        for record in late:
            if record.key == (choice.candidate, choice.depth) and record.router == self._store.router:
                sum.window.merge(record.window)
        sum.read_s = max((record.window.end for record in late), default=sum.read_s)

    def _follow(self, mind: Reassessor) -> None:
        """Take note of what a person has changed."""
        mind.watch.pinned = "" if self._conductor.pinned is None else "an operator"
        self._count(mind)
        actual = set(mind.shards)
        is_other = bool(mind.split) or mind.serving not in actual
        if len(actual) == 1 and mind.trying is None and is_other:
            mind.now_serves(mind.shards[0], self._now())

    def _count(self, mind: Reassessor) -> None:
        """Note what each shard serves."""
        mind.shards = tuple(generation.choice for _, generation in sorted(self.listener.generations.items()))
        mind.watch.num_shards_of = Counter(mind.shards) if mind.split else {}

    async def _carry_out(self, mind: Reassessor, decision: Decision) -> None:
        order = self._order(mind, decision)
        if not order.layout:
            mind.took(decision, self._now())
            self._write_down(order, decision)
            return
        began = self._now().ms
        try:
            done = await self._conductor.carry_out(order)
        except SwapRefused as error:
            log.info("Not now: %s", error)  # it is asked for again
            return
        self._say(decision)
        if done.outcome is not Outcome.COMMITTED:
            mind.failed(decision, done.error or "it could not be loaded", self._now())
            self.listener.woken.set()
            return
        ms = (self._now().ms - began) / len(order.layout)
        for choice in set(order.layout.values()):
            mind.note_change(choice, ms)
        if decision.kind is Kind.EVALUATE:
            num_shards = max(1, len(self.listener.generations))
            mind.watch.on_spent(done.phases_ms.get("hold", 0.0) / num_shards)
        mind.took(decision, self._now())
        self._count(mind)

    def _order(self, mind: Reassessor, decision: Decision) -> Order:
        unit = UNITS[self._repository.objective]
        wanted, generations = self._wanted(decision), self.listener.generations
        return Order(
            kind=decision.kind,
            by="loop",
            why=decision.why,
            to=decision.choice,
            wish=self._wish,
            layout={shard: one for shard, one in wanted.items() if generations[shard].choice != one},
            split=decision.split,
            spread=wanted,
            seen=_seen(mind),
            considered=[one.told(unit) for one in decision.considered],
        )

    def _wanted(self, decision: Decision) -> dict[int, Choice]:
        """What shards are to serve by a decision. What is tried is tried on one of them."""
        if decision.kind is Kind.STAY and not decision.considered:
            return {}
        shards = sorted(self.listener.generations)
        if decision.shards:
            return dict(zip(shards, decision.shards, strict=True))
        return dict.fromkeys(shards[-1:] if decision.kind is Kind.EVALUATE else shards, decision.choice)

    def _write_down(self, order: Order, decision: Decision) -> None:
        """A decision that changes nothing, unless it says what the last one said."""
        if not decision.considered or (decision.kind, decision.why) == self._last:
            return
        self._say(decision)
        self._conductor.note(
            order.kind, order.by, order.why, seen=order.seen, considered=order.considered, chosen=order.chosen
        )

    def _say(self, decision: Decision) -> None:
        self._last = (decision.kind, decision.why)
        log.info("%s: %s", decision.kind, decision.why)

    def _hold(self, why: str) -> None:
        if self._holds != why:
            self._holds = why
            log.warning("The loop holds still. %s", why)
            self._conductor.note("hold", "loop", why)
        asyncio.get_running_loop().call_later(_PAUSE_S, self.listener.woken.set)

    def _let_go(self) -> None:
        if self._holds:
            self._holds = ""
            log.info("The loop goes on.")
            self._conductor.note("resume", "loop", "Redis is back.")

    def _now(self) -> Now:
        return Now(self._unix_s(), 1000 * asyncio.get_running_loop().time())

    def _open_mind(self, generation: Generation) -> Reassessor:
        """Know what a shard has, from the first that serves."""
        ready, choice = generation.ready, generation.choice
        facts = self._facts[choice.candidate]
        kv_bytes = ready.num_blocks * ready.block_size * facts.kv_bytes * ready.depth
        device = Device(
            memory_bytes=facts.weight_bytes(ready.depth) + kv_bytes,
            max_batch_size=generation.target.config.max_batch_size,
            watts=self._watts,
        )
        mind = Reassessor(self._repository, device, choice, self._now())
        mind.facts = dict(self._facts)
        return mind


def _seen(mind: Reassessor) -> dict[str, Any]:
    """What a decision rests on, as the diary has it."""
    demand = mind.watch.demand
    return {
        "serving": _served(mind),
        "requests": mind.watch.num_requests,
        "prompts": {name: round(share, 2) for name, share in demand.mix.items()},
        "prompt_tokens": round(demand.prompt_tokens, 1),
        "answer_tokens": round(demand.answer_tokens, 1),
        "batch_size": round(demand.batch_size, 1),
        "breach_rate": round(mind.watch.breach_rate, 3),
    }


def _served(mind: Reassessor) -> str:
    return ", ".join(map(str, mind.served))
