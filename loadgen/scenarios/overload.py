"""Ten times the server's capacity: it must refuse at once, serve admitted requests, and recover."""

from collections.abc import Sequence

import numpy as np

from loadgen.client.records import Outcome, Record
from loadgen.load.run import Run
from loadgen.load.single_request import ask_alone
from loadgen.results.summary import Measured, Summary
from loadgen.scenarios.context import Played, Promise, Scenario, ScenarioContext, whole_answers

PROBE_STREAMS, PROBE_SECONDS, TOKENS = 32, 8.0, "32"
FACTOR, SECONDS = 10, 30
MAX_RATE = 1500.0  # more would exceed this client
REFUSED_WITHIN_MS = 250.0
MEMORY_GROWTH = 1.2


async def play(context: ScenarioContext) -> Played:
    probe = context.plan(
        concurrency=context.options.concurrency or PROBE_STREAMS,
        duration=f"{max(1.0, min(PROBE_SECONDS, context.scaled(PROBE_SECONDS))):g}s",
        output_tokens=TOKENS,
        eos="ignore",
    )
    async with context.reach(probe) as target:
        _, capacity = await context.run(target, probe, "overload: what is the capacity?")
        rate = min(MAX_RATE, FACTOR * max(0.1, capacity.throughput.requests_per_s))
        flood = context.plan(
            rate=f"{rate:g}",
            duration=context.seconds(SECONDS),
            output_tokens=TOKENS,
            eos="ignore",
            warmup="0s",
        )
        run, summary = await context.run(target, flood, f"overload: {rate:.0f} requests/s")
        after = await ask_alone(target, "Are you well?", 8)
    refused = [record for record in run.records if record.outcome is Outcome.REFUSED]
    promises = [*whole_answers(summary), _served(summary), *_refusals(refused), _recovers(after)]
    promises += _memory(run)
    figures = {
        "capacity_per_s": capacity.throughput.requests_per_s,
        "offered_per_s": rate,
        "refused": len(refused),
    }
    return Played(promises=promises, runs=[Measured(run, summary)], figures=figures)


def _served(summary: Summary) -> Promise:
    ok = summary.outcomes.get("ok", 0)
    return Promise("Those who are admitted are served.", ok > 0, f"{ok} of {summary.num_requests:,} answered")


def _refusals(refused: Sequence[Record]) -> list[Promise]:
    """Promises about refusals; none for a server that queues everything."""
    if not refused:
        return []
    waited = np.array([((r.ended or 0.0) - (r.sent or 0.0)) * 1e3 for r in refused])
    p95 = float(np.quantile(waited, 0.95))
    num_told = sum(record.retry_after_s is not None for record in refused)
    return [
        Promise(
            "Refusals come at once.", p95 <= REFUSED_WITHIN_MS, f"p95 {p95:.1f} ms of {len(refused)} refusals"
        ),
        Promise("Refusals say when to come back.", num_told == len(refused), f"{num_told} of {len(refused)}"),
    ]


def _recovers(after: Record) -> Promise:
    found = (
        f"{after.outcome}, first token after {after.ttft_ms or 0:.0f} ms"
        if after.token_times
        else after.detail
    )
    return Promise("Afterwards the server answers as before.", after.outcome is Outcome.OK, found)


def _memory(run: Run) -> list[Promise]:
    """Promises about memory, if the server reports it."""
    known = [value for scrape in run.scrapes if (value := scrape.get("resident_bytes")) is not None]
    if len(known) < 2:
        return []
    growth = max(known) / known[0]
    found = f"{known[0] / 2**20:.0f} MiB before, at most {max(known) / 2**20:.0f} MiB"
    return [Promise("Memory stays flat.", growth <= MEMORY_GROWTH, found)]


SCENARIO = Scenario(
    "overload",
    "Measures the capacity, then offers ten times as much for half a minute. Whoever is refused is refused "
    "within 250 ms and told when to come back, whoever is admitted is served, and afterwards all is well.",
    play,
)
