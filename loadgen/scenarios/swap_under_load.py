"""Model and depth change repeatedly while streams are open."""

import asyncio
from collections.abc import Sequence
from itertools import cycle, islice
from time import monotonic

import msgspec

from loadgen.cli.units import BadQuantity
from loadgen.client.client import END_TIMEOUT_S
from loadgen.client.ops import Decision
from loadgen.client.records import Outcome, Record
from loadgen.client.server_info import Unusable
from loadgen.load.run import Run
from loadgen.load.single_request import ask_alone
from loadgen.load.target import Target
from loadgen.results.summary import Measured, Summary
from loadgen.scenarios.context import (
    Played,
    Promise,
    Scenario,
    ScenarioContext,
    answered_by_version,
    equal_answers,
    whole_answers,
)

STREAMS, SWAPS, SECONDS = 64, 20, 120
TOKENS = "uniform:40:200"  # spreads the starts and ends of streams
SWAP_PATIENCE_S = 60.0
NUM_REFERENCES = 8  # prompts per version that are repeated without load


class Goal(msgspec.Struct, frozen=True):
    """A candidate to swap to; depth None: by the server."""

    candidate: str
    depth: int | None

    @classmethod
    def parse(cls, text: str) -> "Goal":
        name, at, depth = text.strip().rpartition("@")
        if not at:
            return cls(depth, None)
        if not depth.isdigit():
            raise BadQuantity(f"{text!r} is not a candidate like small@10")
        return cls(name, int(depth))


async def play(context: ScenarioContext) -> Played:
    seconds = context.scaled(SECONDS)
    plan = context.plan(
        concurrency=context.options.concurrency or STREAMS,
        duration=f"{seconds:g}s",
        output_tokens=TOKENS,
        eos="ignore",
        **context.prompts("chat,story"),
    )
    async with context.reach(plan) as target:
        slo = await _goals(context, target)
        num_swaps = context.count(SWAPS, least=2)
        decisions: list[Decision] = []
        wanted = list(islice(cycle(slo), num_swaps))
        swapping = asyncio.create_task(_swap_all(context, target, wanted, seconds, decisions))
        try:
            run, summary = await context.run(target, plan, "swap-under-load")
        finally:
            swapping.cancel()
            await asyncio.wait([swapping], timeout=END_TIMEOUT_S)
        repeated = await _in_peace(target, run, slo) if context.options.exact_answers else None
    promises = [*whole_answers(summary), _no_failure(summary), _decided(decisions, num_swaps)]
    promises.append(answered_by_version(run.records))
    if repeated is not None:
        promises += [equal_answers(summary), repeated]
    return Played(promises=promises, runs=[Measured(run, summary)], figures=_figures(summary, decisions))


async def _goals(context: ScenarioContext, target: Target) -> list[Goal]:
    """The user's goals, else every candidate and depth that the server lists."""
    if context.options.swaps:
        return [Goal.parse(text) for text in context.options.swaps.split(",")]
    state = await target.operator.state()
    rows = (state or {}).get("candidates") or []
    found = [Goal(str(row.get("candidate") or row.get("model")), row.get("depth")) for row in rows]
    if state is None or len(found) < 2:
        raise Unusable(
            f"{context.options.url} lists no two candidates to swap between; name some with --swaps"
        )
    return found


async def _swap_all(
    context: ScenarioContext, target: Target, slo: Sequence[Goal], seconds: float, done: list[Decision]
) -> None:
    """Swap at equal intervals; each swap is awaited, since a server runs one at a time.

    Completed swaps are appended to `done`, which counts even if the run ends before the last swap.
    """
    pause, began = seconds / (len(slo) + 1), monotonic()
    for index, goal in enumerate(slo, start=1):
        await asyncio.sleep(max(0.0, began + index * pause - monotonic()))
        context.screen.note = f"swap {index} of {len(slo)}: {goal.candidate}@{goal.depth or 'auto'}"
        done.append(await _swap(target, goal))


async def _swap(target: Target, goal: Goal) -> Decision:
    """Run one swap; a refusal is returned as a decision with that outcome."""
    name = f"{goal.candidate}@{goal.depth}"
    asked = await target.operator.swap(goal.candidate, goal.depth)
    value = asked.json()
    id = str(value.get("decision_id", "")) if isinstance(value, dict) else ""
    if not asked.is_ok or not id:
        words = asked.problem or asked.body[:200].decode("utf-8", "replace")
        return Decision("", 0.0, "loadgen", "swap", name, "", f"status {asked.status}", {}, words)
    found = await target.operator.outcome(id, SWAP_PATIENCE_S)
    return found or Decision(id, 0.0, "loadgen", "swap", name, "", "not over in time")


def _no_failure(summary: Summary) -> Promise:
    refused = summary.outcomes.get(Outcome.REFUSED.value, 0)
    ok = summary.outcomes.get(Outcome.OK.value, 0)
    found = f"{ok} answered, {refused} refused, {sum(summary.failures.values())} failed"
    return Promise("No request fails.", not summary.failures and ok > 0, found)


def _decided(decisions: Sequence[Decision], num_wanted: int) -> Promise:
    """All planned swaps were carried out while the streams ran."""
    missed = [decision for decision in decisions if decision.outcome != "committed"]
    num_done = len(decisions) - len(missed)
    found = f"{num_done} of {num_wanted}"
    if missed:
        found += f"; {missed[0].chosen}: {missed[0].outcome} {missed[0].error}"
    return Promise("Every swap is carried out.", num_done == num_wanted, found)


async def _in_peace(target: Target, run: Run, slo: Sequence[Goal]) -> Promise:
    """Swap to each candidate again without load, and repeat some of its prompts."""
    checked = unequal = 0
    for goal in dict.fromkeys(slo):
        if (await _swap(target, goal)).outcome != "committed":
            continue
        before = _answered_by(run.records, goal)[:NUM_REFERENCES]
        after = await asyncio.gather(*(ask_alone(target, r.prompt, r.max_tokens) for r in before))
        checked += len(before)
        unequal += sum(again.text != record.text for record, again in zip(before, after, strict=True))
    found = f"{unequal} of {checked} differ"
    return Promise("Answers equal those of an unswapped server.", checked > 0 and unequal == 0, found)


def _answered_by(records: Sequence[Record], goal: Goal) -> list[Record]:
    def is_by(record: Record) -> bool:
        segment = record.segments[0] if len(record.segments) == 1 else None
        return segment is not None and segment.model == goal.candidate and goal.depth in (None, segment.depth)

    return [record for record in records if record.outcome is Outcome.OK and is_by(record)]


def _figures(summary: Summary, decisions: Sequence[Decision]) -> dict[str, object]:
    gaps = [swap.longest_gap_ms for swap in summary.swaps if swap.longest_gap_ms is not None]
    usual = summary.latencies.itl.p99 if summary.latencies.itl else None
    return {"swaps": len(decisions), "longest_gap_ms": max(gaps, default=None), "itl_p99_ms": usual}


SCENARIO = Scenario(
    "swap-under-load",
    "Sixty-four streams without pause while model and depth change twenty times in two minutes. Shows the "
    "longest gap at each swap. No request fails, every swap is carried out, every answer names its version; "
    "with --exact-answers also: what was said under swaps equals what an unswapped server says.",
    play,
)
