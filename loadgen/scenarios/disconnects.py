"""Clients that disconnect at random moments; checks that nothing is left behind on the server."""

import asyncio
from time import monotonic
from typing import Any

from loadgen.client.records import Outcome
from loadgen.client.scrape import Scrape, parse_metrics
from loadgen.load.single_request import ask_alone
from loadgen.load.target import Target
from loadgen.results.summary import Measured
from loadgen.scenarios.context import Played, Promise, Scenario, ScenarioContext, whole_answers

CLIENTS, ARRIVE_WITHIN_S, HANG_UP_WITHIN = 200, 5.0, "3s"
SETTLED_WITHIN_S = 5.0


async def play(context: ScenarioContext) -> Played:
    clients = context.count(CLIENTS, least=10)
    plan = context.plan(
        rate=f"{CLIENTS / ARRIVE_WITHIN_S:g}",
        requests=clients,
        output_tokens="200",
        eos="ignore",
        cancel="90%",
        cancel_within=HANG_UP_WITHIN,
        warmup="0s",
    )
    async with context.reach(plan) as target:
        run, summary = await context.run(target, plan, "disconnects")
        left, took_s = await _wait_until_idle(target)
        after = await ask_alone(target, "Is anybody there?", 8)
    hung_up = summary.outcomes.get(Outcome.CANCELLED.value, 0)
    promises = [
        *whole_answers(summary),
        Promise("Clients did hang up.", hung_up > 0, f"{hung_up} of {summary.num_requests}"),
        Promise("Nothing stays behind.", not left, left or f"idle after {took_s:.2f} s"),
        Promise("The server answers afterwards.", after.outcome is Outcome.OK, after.outcome.value),
    ]
    return Played(
        promises=promises, runs=[Measured(run, summary)], figures={"hung_up": hung_up, "idle_after_s": took_s}
    )


async def _wait_until_idle(target: Target) -> tuple[str, float]:
    """What is left after the time allowed, and how long the server took to become idle."""
    began = monotonic()
    while True:
        left = await _left_behind(target)
        if not left or monotonic() - began > SETTLED_WITHIN_S:
            return left, monotonic() - began
        await asyncio.sleep(0.1)


async def _left_behind(target: Target) -> str:
    """What is left, by /ops/state, else by metrics; empty if idle or unknown."""
    state = await target.operator.state()
    if state is not None:
        return _in_state(state)
    answer = await target.client.fetch("GET", "/metrics")
    scrape = Scrape(monotonic(), parse_metrics(answer.body.decode("utf-8", "replace")))
    found = {name: scrape.get(name) or 0 for name in ("running", "waiting")}
    return ", ".join(f"{count:g} {name}" for name, count in found.items() if count)


def _in_state(state: dict[str, Any]) -> str:
    shards = [shard for shard in state["shards"] if isinstance(shard, dict)]
    running = max(int(state.get("running") or 0), sum(int(shard.get("running") or 0) for shard in shards))
    waiting = max(int(state.get("waiting") or 0), sum(int(shard.get("waiting") or 0) for shard in shards))
    used = sum(int(s.get("num_blocks") or 0) - int(s.get("num_free_blocks") or 0) for s in shards)
    found = {"running": running, "waiting": waiting, "blocks in use": used}
    return ", ".join(f"{count} {name}" for name, count in found.items() if count)


SCENARIO = Scenario(
    "disconnects",
    "Two hundred clients, of whom nine in ten hang up at a random moment: in the queue, in prefill, in the "
    "middle of a sentence. Nothing stays behind, the others get whole answers, the server goes on.",
    play,
)
