"""The loop of reassessment: watches, reads telemetry, decides, has it carried out, writes it down.

What it decides is the policy's (router/policy); how a change is made is the conductor's. While Redis is away
it changes nothing, and says so.
"""

import asyncio
import logging
import time
from typing import Any

import msgspec

from router.conductor import Conductor, Order
from router.dispatcher import Dispatcher
from router.generation import Generation
from router.policy.decide import UNITS, Decision, Kind
from router.policy.reassessor import Now, Reassessor
from router.policy.seen import Device, Facts
from router.policy.watch import Answered
from router.policy.weighing import Weighed
from router.recorder import class_of
from router.repository import Choice, Repository
from router.request import Request
from router.swap import SwapRefused, Wish
from shard.messages import FinishReason, Score, StepOutput
from telemetry.audit import Outcome
from telemetry.sample import Record, Window, by_candidate
from telemetry.store import Store

log = logging.getLogger(__name__)

_PAUSE_S = 1.0  # between two decisions
_LEAST_WINDOW_S = 1.0  # telemetry is cut into seconds


class LoopState(msgspec.Struct, frozen=True):
    """What `/ops/state` shows of the loop."""

    state: str  # watching | trying | holding | off
    serving: str
    trying: str | None
    why: str  # of the last decision, or why it holds still
    num_requests: int


class Loop:
    """An observer with a task of its own. `start` once a shard serves; `stop` before the shards end."""

    def __init__(
        self,
        repository: Repository,
        facts: dict[str, Facts],
        dispatcher: Dispatcher,
        conductor: Conductor,
        store: Store,
        wish: Wish,
        watts: float | None = None,
    ):
        self._repository = repository
        self._facts = facts
        self._dispatcher = dispatcher
        self._conductor = conductor
        self._store = store
        self._wish = wish
        self._watts = watts
        self._mind: Reassessor | None = None  # once a shard has told what it has
        self._generations: dict[int, Generation] = {}  # that requests begin on, by shard
        self._woken = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._holds = ""  # why it changes nothing
        self._last = ("", "")  # decision written down last: kind and why

    def start(self) -> None:
        """Nothing to do where there is nothing to choose."""
        if self._repository.loop.enabled and sum(len(facts.choices) for facts in self._facts.values()) > 1:
            self._task = asyncio.create_task(self._run())

    async def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    @property
    def state(self) -> LoopState:
        mind = self._mind
        if self._task is None or mind is None:
            return LoopState("off", "", None, "There is nothing to choose.", 0)
        state = "holding" if self._holds else "trying" if mind.trying else "watching"
        trying = None if mind.trying is None else str(mind.trying)
        why = self._holds or self._last[1]
        return LoopState(state, str(mind.serving), trying, why, mind.watch.num_requests)

    # As an observer

    def on_submitted(self, request: Request) -> None:
        pass

    def on_started(self, request: Request) -> None:
        pass

    def on_preempted(self, request: Request) -> None:
        pass

    def on_tokens(self, request: Request, num_tokens: int, now: float) -> None:
        pass

    def on_finished(self, request: Request) -> None:
        if self._mind is not None and isinstance(request.outcome, FinishReason):
            self._mind.on_answered(_answered(request))
            self._wake_if_due(self._mind)

    def on_scored(self, request: Request, scores: list[Score]) -> None:
        """Live answers may have revoked what serves."""
        self._woken.set()

    def on_step(self, shard: int, output: StepOutput) -> None:
        mind, generation = self._mind, self._generations.get(shard)
        if mind is None or generation is None or _choice_of(generation) != mind.serving:
            return
        exits = output.exits
        if output.generation == generation.ticket and exits is not None:
            num_tokens = sum(exits.tokens_by_exit.values())
            mind.watch.on_step(output.num_sequences, num_tokens, exits.breaches)
        else:
            mind.watch.on_step(output.num_sequences, 0, 0)
        if mind.watch.is_breached:
            self._woken.set()

    def on_shard_ready(self, shard: int, generation: Generation) -> None:
        self._generations[shard] = generation
        if self._mind is None:
            self._mind = self._wake_up(generation)

    def on_swap(self, shard: int, outcome: str, phases_ms: dict[str, float]) -> None:
        pass

    def on_shard_death(self, shard: int, reason: str) -> None:
        self._generations.pop(shard, None)

    # As a task

    async def _run(self) -> None:
        while True:
            await self._woken.wait()
            self._woken.clear()
            try:
                await self._reassess()
            except Exception:
                log.exception("Reassessment failed; serving goes on as it is.")
            await asyncio.sleep(_PAUSE_S)

    async def _reassess(self) -> None:
        """Look, decide, and carry it out."""
        mind = self._mind
        if mind is None:
            return
        windows = await self._windows(mind)
        if windows is None:
            self._hold("Redis is away: nothing is changed until it is back.")
            return
        self._let_go()
        self._follow(mind)
        mind.learn(self._store.history, windows, _now())
        decision = mind.decide(self._store.history, _now())
        await self._carry_out(mind, decision)

    async def _windows(self, mind: Reassessor) -> dict[Choice, Window] | None:
        """What was measured of what serves, and of what is tried; None while Redis is away."""
        choices = [mind.serving, *([mind.trying] if mind.trying is not None else [])]
        since = {choice: mind.since_s(choice) for choice in choices}
        await self._store.flush()
        records = await self._store.records(time.time() - min(since.values()) + _LEAST_WINDOW_S)
        if records is None:
            return None
        return {choice: self._window(records, choice, since[choice]) for choice in choices}

    def _window(self, records: list[Record], choice: Choice, since_s: float) -> Window:
        """Of this router's shards: another's traffic may be another."""
        own = [record for record in records if record.router == self._store.router]
        late = [record for record in own if record.window.end > since_s + _LEAST_WINDOW_S / 2]
        return by_candidate(late).get((choice.candidate, choice.depth), Window())

    def _follow(self, mind: Reassessor) -> None:
        """Take note of what a person has changed."""
        pinned = self._conductor.pinned
        mind.watch.pinned = "" if pinned is None else "an operator"
        actual = {_choice_of(generation) for generation in self._generations.values()}
        if len(actual) == 1 and mind.trying is None and mind.serving not in actual:
            mind.now_serves(next(iter(actual)), _now())

    async def _carry_out(self, mind: Reassessor, decision: Decision) -> None:
        shards = self._to_change(mind, decision)
        if not shards:
            mind.took(decision, _now())
            self._write_down(mind, decision)
            return
        began = time.monotonic()
        order = self._order(mind, decision, shards)
        try:
            done = await self._conductor.carry_out(order)
        except SwapRefused as error:
            log.info("Not now: %s", error)  # it is asked for again
            return
        self._last = (decision.kind, decision.why)
        log.info("%s: %s", decision.kind, decision.why)
        if done.outcome is not Outcome.COMMITTED:
            mind.failed(decision, done.error or "it could not be loaded", _now())
            return
        ms = 1000 * (time.monotonic() - began)
        mind.note_change(decision.choice, ms / len(shards), self._generations[shards[0]].ready.version)
        if decision.kind is Kind.EVALUATE:
            mind.watch.on_spent(done.phases_ms.get("hold", 0.0) / len(self._generations))
        mind.took(decision, _now())

    def _to_change(self, mind: Reassessor, decision: Decision) -> tuple[int, ...]:
        """Shards that do not serve yet what is decided. What is tried is tried on one of them."""
        if decision.kind is Kind.STAY and not decision.considered:
            return ()
        if decision.kind is Kind.EVALUATE:
            named = {max(self._generations, default=0): decision.choice}
        else:
            named = dict.fromkeys(self._generations, decision.choice)
        return tuple(
            shard
            for shard, choice in sorted(named.items())
            if shard in self._generations and _choice_of(self._generations[shard]) != choice
        )

    def _order(self, mind: Reassessor, decision: Decision, shards: tuple[int, ...]) -> Order:
        return Order(
            kind=decision.kind,
            by="loop",
            why=decision.why,
            to=decision.choice,
            wish=self._wish,
            shards=shards,
            seen=_seen(mind),
            considered=[_considered(one, self._repository) for one in decision.considered],
        )

    def _write_down(self, mind: Reassessor, decision: Decision) -> None:
        """A decision that changes nothing, unless it says what the last one said."""
        if not decision.considered or (decision.kind, decision.why) == self._last:
            return
        self._last = (decision.kind, decision.why)
        log.info("%s: %s", decision.kind, decision.why)
        considered = [_considered(one, self._repository) for one in decision.considered]
        chosen = {"candidate": decision.choice.candidate, "depth": decision.choice.depth}
        self._conductor.note(
            decision.kind, "loop", decision.why, seen=_seen(mind), considered=considered, chosen=chosen
        )

    def _hold(self, why: str) -> None:
        if self._holds != why:
            self._holds = why
            log.warning("The loop holds still. %s", why)
            self._conductor.note("hold", "loop", why)
        asyncio.get_running_loop().call_later(_PAUSE_S, self._woken.set)

    def _let_go(self) -> None:
        if self._holds:
            self._holds = ""
            log.info("The loop goes on.")
            self._conductor.note("resume", "loop", "Redis is back.")

    def _wake_if_due(self, mind: Reassessor) -> None:
        if mind.watch.is_due:
            self._woken.set()

    def _wake_up(self, generation: Generation) -> Reassessor:
        """Know what a shard has, from the first that serves."""
        ready, choice = generation.ready, _choice_of(generation)
        facts = self._facts[choice.candidate]
        kv_bytes = ready.num_blocks * ready.block_size * facts.kv_bytes * ready.depth
        device = Device(
            memory_bytes=facts.weight_bytes(ready.depth) + kv_bytes,
            max_batch_size=generation.target.config.max_batch_size,
            watts=self._watts,
        )
        mind = Reassessor(self._repository, device, choice, _now())
        mind.facts = dict(self._facts)
        return mind


def _answered(request: Request) -> Answered:
    author = request.written_by
    sure = [output.confidence for output in request.outputs if output.confidence is not None]
    return Answered(
        choice=None if author is None else Choice(author.model, author.depth),
        prompts=class_of(request.spec.prompt),
        num_prompt_tokens=request.num_prompt_tokens,
        num_tokens=len(request.outputs),
        mean_exit_layer=request.mean_exit_layer or 0.0,
        mean_confidence=sum(sure) / len(sure) if sure else None,
    )


def _choice_of(generation: Generation) -> Choice:
    return Choice(generation.target.name, generation.ready.depth)


def _now() -> Now:
    return Now(time.time(), 1000 * time.monotonic())


def _seen(mind: Reassessor) -> dict[str, Any]:
    demand, standing = mind.watch.demand, mind.watch.standing(_now().ms)
    return {
        "serving": str(mind.serving),
        "requests": standing.num_requests,
        "prompts": demand.mix,
        "prompt_tokens": round(demand.prompt_tokens, 1),
        "answer_tokens": round(demand.answer_tokens, 1),
        "batch_size": round(demand.batch_size, 1),
        "breach_rate": round(mind.watch.breach_rate, 3),
    }


def _considered(one: Weighed, repository: Repository) -> dict[str, Any]:
    return {
        "candidate": one.choice.candidate,
        "depth": one.choice.depth,
        "cost": round(one.cost, 3),
        "unit": UNITS[repository.objective],
        "error": round(one.error, 3),
        "ruled_out": one.why_not,
    }
