"""A long mixed load; checks that the server gets neither slower nor larger."""

from collections.abc import Sequence

import numpy as np

from loadgen.client.records import Outcome, Record
from loadgen.load.run import Run
from loadgen.results.summary import Measured
from loadgen.scenarios.context import Played, Promise, Scenario, ScenarioContext, whole_answers

STREAMS, SECONDS = 16, 1800
SLOWER = 1.25
LARGER = 1.1


async def play(context: ScenarioContext) -> Played:
    rate = context.options.rate
    plan = context.plan(
        concurrency=None if rate else context.options.concurrency or STREAMS,
        rate=f"{rate:g}" if rate else None,
        duration=context.seconds(SECONDS),
        output_tokens="lognormal:90:0.7",
        turns=2,
        think="1s",
        cancel="10%",
        **context.prompts("chat=3,code=2,story=1,extract=1"),
    )
    async with context.reach(plan) as target:
        run, summary = await context.run(target, plan, "soak")
    promises = [*whole_answers(summary), *_speed(run), *_memory(run)]
    return Played(promises=promises, runs=[Measured(run, summary)])


def _speed(run: Run) -> list[Promise]:
    """Compares the time per token in the last third with the first."""
    thirds = np.linspace(run.began, run.last_start, 4)
    first, last = _median_tpot(run.records, *thirds[:2]), _median_tpot(run.records, *thirds[2:])
    if first is None or last is None:
        return []
    found = f"{first:.2f} ms per token in the first third, {last:.2f} ms in the last"
    return [Promise("The server does not get slower.", last <= SLOWER * first, found)]


def _median_tpot(records: Sequence[Record], low: float, high: float) -> float | None:
    inside = [r.tpot_ms for r in records if r.outcome is Outcome.OK and low <= r.intended <= high]
    known = [value for value in inside if value is not None]
    return float(np.median(known)) if known else None


def _memory(run: Run) -> list[Promise]:
    """Compares the memory of the last quarter with the second, since the first fills caches."""
    known = [value for scrape in run.scrapes if (value := scrape.get("resident_bytes")) is not None]
    if len(known) < 8:
        return []
    quarter = len(known) // 4
    before, after = float(np.mean(known[quarter : 2 * quarter])), float(np.mean(known[-quarter:]))
    found = f"{before / 2**20:.0f} MiB in the second quarter, {after / 2**20:.0f} MiB in the last"
    return [Promise("Its memory stays flat.", after <= LARGER * before, found)]


SCENARIO = Scenario(
    "soak",
    "Half an hour of everything at once: all classes, two turns, one in ten hangs up. Nothing is lost, the "
    "last third is as fast as the first, memory stays flat.",
    play,
)
