"""The reassessment loop: reads telemetry, decides, has decisions carried out and recorded.

The policy decides (router/policy), the swap controller makes the changes. While Redis is away the loop
changes nothing, and says so.
"""

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import msgspec

from router.catalog.profile import CandidateProfile
from router.catalog.repository import Choice, Repository
from router.catalog.served_model import ServedModel
from router.control.loop_observer import LoopObserver
from router.control.swap_controller import ChangeRequest, SwapController
from router.fleet.dispatcher import Dispatcher
from router.fleet.swap import SwapOptions, SwapRefused
from router.policy.decision import Decision, DecisionKind
from router.policy.observation import Device
from router.policy.reassessor import Now, Reassessor
from router.policy.weighing import UNITS
from telemetry import tasks
from telemetry.audit import Outcome
from telemetry.snapshot import Breaches, LoopState
from telemetry.store import Store
from telemetry.window import Record, Window

log = logging.getLogger(__name__)

_PAUSE_S = 1.0  # between two decisions
_CUT_S = 1.0  # length of a telemetry window


class _Sum(msgspec.Struct):
    """Sum of a choice's telemetry windows read so far, from `since_s` on."""

    since_s: float
    window: Window
    read_s: float


class ReassessmentLoop:
    """Call `start` once a shard serves, `stop` when the shards have ended, and add `observer` before."""

    def __init__(
        self,
        repository: Repository,
        profiles: dict[str, CandidateProfile],
        dispatcher: Dispatcher,
        controller: SwapController,
        store: Store,
        options: SwapOptions,
        watts: float | None = None,
        unix_s: Callable[[], float] = time.time,
    ):
        self.observer = LoopObserver(dispatcher, self._open_policy_state)
        self._repository = repository
        self._profiles = profiles
        self._dispatcher = dispatcher
        self._controller = controller
        self._store = store
        self._options = options
        self._watts = watts
        self._unix_s = unix_s
        self._sums: dict[Choice, _Sum] = {}
        self._task: asyncio.Task[None] | None = None
        self._holds = ""  # why it changes nothing
        self._last = ("", "")  # last decision and its reason

    def start(self) -> None:
        """Start the loop, if there is more than one choice."""
        num_choices = sum(len(profile.choices) for profile in self._profiles.values())
        if self._repository.loop.enabled and num_choices > 1:
            self._task = tasks.begin(self._run(), "Reassessment")

    async def stop(self) -> None:
        if self._task is not None:
            await tasks.cancel(self._task)

    @property
    def state(self) -> LoopState:
        policy_state = self.observer.policy_state
        if policy_state is None:
            return LoopState("off", None, None, "No shard has served yet.", 0)
        if self._task is None:
            why, breaches = "There is nothing to choose.", self._breaches(policy_state)
            return LoopState("off", self._serving(policy_state), None, why, 0, breaches=breaches)
        state = "holding" if self._holds else "trying" if policy_state.trying else "watching"
        trying = None if policy_state.trying is None else str(policy_state.trying)
        return LoopState(
            state,
            self._serving(policy_state),
            trying,
            self._holds or self._last[1],
            policy_state.watch.num_requests,
            policy_state.watch.num_until_due,
            self._breaches(policy_state),
        )

    def _serving(self, policy_state: Reassessor) -> str:
        """What serves, also if an operator changed it and the loop has not looked since."""
        actual = sorted({model.choice for model in self._dispatcher.served_models.values()}, key=str)
        if policy_state.split or policy_state.trying is not None or not actual:
            return _served(policy_state)
        return ", ".join(map(str, actual))

    def _breaches(self, policy_state: Reassessor) -> list[Breaches]:
        settings = self._repository.loop
        return [
            Breaches(str(choice), *counts, settings.breach_limit, settings.breach_window)
            for choice, counts in policy_state.watch.breaches_by_choice.items()
        ]

    async def _run(self) -> None:
        while True:
            await self.observer.woken.wait()
            self.observer.woken.clear()
            try:
                await self.reassess()
            except Exception:
                log.exception("Reassessment failed; serving goes on as it is.")
            await asyncio.sleep(_PAUSE_S)

    async def reassess(self) -> None:
        """Observe, decide, and have the decision carried out."""
        policy_state = self.observer.policy_state
        if policy_state is None:
            return
        windows = await self._windows(policy_state)
        if windows is None:
            self._hold("Redis is away: nothing is changed until it is back.")
            return
        self._let_go()
        self._follow(policy_state)
        policy_state.learn(self._store.history, windows, self._now())
        decision = policy_state.decide(self._store.history, self._now())
        self._dispatcher.route(policy_state.admitted)
        await self._carry_out(policy_state, decision)

    async def _windows(self, policy_state: Reassessor) -> dict[Choice, Window] | None:
        """Windows of the served and the evaluated choices; None while Redis is away."""
        choices = [*policy_state.served, *([policy_state.trying] if policy_state.trying is not None else [])]
        self._sums = {choice: self._sum(choice, policy_state.since_s(choice)) for choice in choices}
        await self._store.flush()
        unread_s = min(total.read_s for total in self._sums.values())
        records = await self._store.records(self._unix_s() - unread_s + _CUT_S)
        if records is None:
            return None
        for choice, total in self._sums.items():
            self._read_on(choice, total, records)
        return {choice: total.window for choice, total in self._sums.items()}

    def _sum(self, choice: Choice, since_s: float) -> _Sum:
        """The sum so far, or an empty one if the period has changed."""
        known = self._sums.get(choice)
        if known is not None and known.since_s == since_s:
            return known
        return _Sum(since_s, Window(), since_s + _CUT_S / 2)

    def _read_on(self, choice: Choice, total: _Sum, records: list[Record]) -> None:
        """Add new windows of this router's own shards: other routers may have other traffic."""
        late = [record for record in records if record.window.end > total.read_s]
        for record in late:
            if record.key == (choice.candidate, choice.depth) and record.router == self._store.router:
                total.window.merge(record.window)
        total.read_s = max((record.window.end for record in late), default=total.read_s)

    def _follow(self, policy_state: Reassessor) -> None:
        """Take over changes that an operator made."""
        policy_state.watch.pinned = "" if self._controller.pinned is None else "an operator"
        policy_state.cached_tokens = self._dispatcher.reusable_tokens
        self._count(policy_state)
        actual = set(policy_state.shards)
        is_other = bool(policy_state.split) or policy_state.serving not in actual
        if len(actual) == 1 and policy_state.trying is None and is_other:
            policy_state.now_serves(policy_state.shards[0], self._now())

    def _count(self, policy_state: Reassessor) -> None:
        """Count the shards of each choice."""
        policy_state.shards = tuple(model.choice for model in self._dispatcher.served_models.values())
        policy_state.watch.num_shards_of = Counter(policy_state.shards) if policy_state.split else {}

    async def _carry_out(self, policy_state: Reassessor, decision: Decision) -> None:
        change = self._change(policy_state, decision)
        if not change.layout:
            policy_state.took(decision, self._now())
            self._write_down(change, decision)
            return
        began = self._now().ms
        try:
            done = await self._controller.carry_out(change)
        except SwapRefused as error:
            log.info("Not now: %s", error)  # the next round asks again
            return
        self._say(decision)
        if done.outcome is not Outcome.COMMITTED:
            policy_state.failed(decision, done.error or "it could not be loaded", self._now())
            self.observer.woken.set()
            return
        ms = (self._now().ms - began) / len(change.layout)
        for choice in set(change.layout.values()):
            policy_state.note_change(choice, ms)
        if decision.kind is DecisionKind.EVALUATE:
            num_shards = max(1, len(self._dispatcher.served_models))
            policy_state.watch.on_spent(done.phases_ms.get("hold", 0.0) / num_shards)
        policy_state.took(decision, self._now())
        self._count(policy_state)

    def _change(self, policy_state: Reassessor, decision: Decision) -> ChangeRequest:
        unit = UNITS[self._repository.objective]
        wanted, served_models = self._wanted(decision), self._dispatcher.served_models
        return ChangeRequest(
            kind=decision.kind,
            by="loop",
            why=decision.why,
            to=decision.choice,
            options=self._options,
            layout={
                shard: choice for shard, choice in wanted.items() if served_models[shard].choice != choice
            },
            split=decision.split,
            spread=wanted,
            seen=_seen(policy_state),
            considered=[ranked.audit_entry(unit) for ranked in decision.considered],
        )

    def _wanted(self, decision: Decision) -> dict[int, Choice]:
        """The choice that each shard is to serve by a decision. One shard evaluates."""
        if decision.kind is DecisionKind.STAY and not decision.considered:
            return {}
        shards = list(self._dispatcher.served_models)
        if decision.shards:
            return dict(zip(shards, decision.shards, strict=True))
        return dict.fromkeys(
            shards[-1:] if decision.kind is DecisionKind.EVALUATE else shards, decision.choice
        )

    def _write_down(self, change: ChangeRequest, decision: Decision) -> None:
        """Record a decision that changes nothing, unless it repeats the last one."""
        if not decision.considered or (decision.kind, decision.why) == self._last:
            return
        self._say(decision)
        self._controller.note(
            change.kind,
            change.by,
            change.why,
            seen=change.seen,
            considered=change.considered,
            chosen=change.chosen,
        )

    def _say(self, decision: Decision) -> None:
        self._last = (decision.kind, decision.why)
        log.info("%s: %s", decision.kind, decision.why)

    def _hold(self, why: str) -> None:
        if self._holds != why:
            self._holds = why
            log.warning("The loop holds still. %s", why)
            self._controller.note("hold", "loop", why)
        asyncio.get_running_loop().call_later(_PAUSE_S, self.observer.woken.set)

    def _let_go(self) -> None:
        if self._holds:
            self._holds = ""
            log.info("The loop goes on.")
            self._controller.note("resume", "loop", "Redis is back.")

    def _now(self) -> Now:
        return Now(self._unix_s(), 1000 * asyncio.get_running_loop().time())

    def _open_policy_state(self, served_model: ServedModel) -> Reassessor:
        """Make the policy's state from the first shard that serves."""
        ready, choice = served_model.ready, served_model.choice
        profile = self._profiles[choice.candidate]
        kv_bytes = ready.num_blocks * ready.block_size * profile.kv_bytes * ready.depth
        device = Device(
            memory_bytes=profile.weight_bytes(ready.depth) + kv_bytes,
            max_batch_size=served_model.target.config.max_batch_size,
            watts=self._watts,
        )
        policy_state = Reassessor(self._repository, device, choice, self._now())
        policy_state.profiles = dict(self._profiles)
        return policy_state


def _seen(policy_state: Reassessor) -> dict[str, Any]:
    """The observations behind a decision, for the audit log."""
    demand = policy_state.watch.demand
    return {
        "serving": _served(policy_state),
        "requests": policy_state.watch.num_requests,
        "prompts": {name: round(share, 2) for name, share in demand.mix.items()},
        "prompt_tokens": round(demand.prompt_tokens, 1),
        "answer_tokens": round(demand.answer_tokens, 1),
        "batch_size": round(demand.batch_size, 1),
        "breach_rate": round(policy_state.watch.breach_rate, 3),
        "cached_tokens": round(policy_state.cached_tokens),
    }


def _served(policy_state: Reassessor) -> str:
    return ", ".join(map(str, policy_state.served))
