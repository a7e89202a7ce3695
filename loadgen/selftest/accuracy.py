"""`helios bench selftest`: tests the load generator's accuracy on this machine.

A synthetic server in its own process records when it sends each event; both processes read the same clock.
Every percentile that the load generator reports must be within 2% or 1 ms of the truth, unless it reported
that it could not keep up.
"""

import asyncio
import time
from typing import Annotated, Any

import msgspec
import numpy as np
import uvloop
from rich.console import Console
from rich.table import Table

from loadgen.cli.flags import Flag
from loadgen.client.files import make_room
from loadgen.client.records import Outcome
from loadgen.load.live import NoView
from loadgen.load.measure import Screen, measure_load
from loadgen.load.options import LoadOptions
from loadgen.load.plan import Plan, plan_of
from loadgen.load.run import Pace, Run
from loadgen.load.target import Target, reach
from loadgen.report.tables import compact_json
from loadgen.results.health import ClientHealth, Verdict, client_health
from loadgen.selftest.process import synthetic_server
from loadgen.selftest.server import Behaviour

ABOUT = """\
Measures this load generator on this machine: many streams from a synthetic server that notes when it
sends each event. Reported percentiles are held against what was sent."""

RAMP_S = 2.0
POINTS = {"p50": 0.5, "p90": 0.9, "p95": 0.95, "p99": 0.99, "p999": 0.999}
TOLERANCE_SHARE, TOLERANCE_MS = 0.02, 1.0
SLOW_EVERY_S = 0.1


class SelftestOptions(msgspec.Struct, frozen=True, kw_only=True):
    """Options of the self-test."""

    streams: Annotated[int, Flag("load", "streams at once", "N")] = 1000
    events_per_s: Annotated[float, Flag("load", "events of all of them together", "R")] = 20_000
    duration: Annotated[float, Flag("load", "seconds at full speed", "S")] = 8.0
    together: Annotated[
        bool, Flag("load", "all streams speak at the same moments, as those of a batch do")
    ] = False
    slow_client_ms: Annotated[
        float, Flag("load", "block the client so long, ten times a second: it must notice", "MS")
    ] = 0.0

    @property
    def itl_ms(self) -> float:
        return self.streams / self.events_per_s * 1e3

    @property
    def num_tokens(self) -> int:
        return max(10, round((self.duration + RAMP_S) * 1e3 / self.itl_ms))


class Comparison(msgspec.Struct, frozen=True):
    """One percentile: reported and true, in ms."""

    measure: str
    point: str
    reported_ms: float
    true_ms: float

    @property
    def is_close(self) -> bool:
        off = abs(self.reported_ms - self.true_ms)
        return off <= max(TOLERANCE_MS, TOLERANCE_SHARE * self.true_ms)


class Outcomes(msgspec.Struct, frozen=True):
    comparisons: list[Comparison]
    health: ClientHealth
    lateness_ms: dict[str, float]  # of timestamps behind the sending
    num_ok: int

    @property
    def is_close(self) -> bool:
        return all(comparison.is_close for comparison in self.comparisons)

    @property
    def is_honest(self) -> bool:
        """Accurate, or reported as inaccurate."""
        return self.is_close or self.health.verdict is not Verdict.FINE


def selftest(options: SelftestOptions, console: Console) -> int:
    """Run and report; returns 0 if figures are right, or were reported as inaccurate."""
    behaviour = Behaviour(
        ttft_ms=50.0,
        itl_ms=options.itl_ms,
        jitter=0.0 if options.together else 0.2,
        step_ms=options.itl_ms if options.together else 0.0,
    )
    make_room()
    with synthetic_server(behaviour) as url, asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        found = runner.run(try_accuracy(url, options))
    _print(found, console)
    line = {"benchmark": "selftest", "close": found.is_close, "streams": options.streams, "ok": found.num_ok}
    figures = {f"{c.measure}_{c.point}_ms": [c.reported_ms, c.true_ms] for c in found.comparisons}
    health = {"client": found.health.verdict, "lag_p99_ms": found.health.lag_p99_ms}
    speed = {"events_per_s": found.health.events_per_s, "cpu_share": found.health.cpu_share}
    print(compact_json({**line, **speed, **health, "lateness_ms": found.lateness_ms, **figures}), flush=True)
    return 0 if found.is_honest else 1


async def try_accuracy(url: str, options: SelftestOptions) -> Outcomes:
    """Load the synthetic server at `url` and compare."""
    plan = plan_of(LoadOptions(workload="chat", output_tokens=str(options.num_tokens)))
    hindrance = asyncio.create_task(_hinder(options.slow_client_ms))
    try:
        async with reach(url, plan) as target:
            run = await _load(target, plan, options)
            truth = (await target.client.fetch("GET", "/truth")).json()
            name = target.client.name
    finally:
        hindrance.cancel()
    return compare_with_truth(run, {number: truth[f"{name}-{number}"] for number in range(len(run.records))})


async def _load(target: Target, plan: Plan, options: SelftestOptions) -> Run:
    starts = (0.1 + index * RAMP_S / options.streams for index in range(options.streams))
    workload = plan.workload(target.filler)
    return await measure_load(target, workload, Pace(times=starts), Screen(NoView(), "selftest"))


async def _hinder(slow_client_ms: float) -> None:
    """Block the loop repeatedly, like an overloaded client."""
    while slow_client_ms > 0:
        await asyncio.sleep(SLOW_EVERY_S)
        time.sleep(slow_client_ms / 1e3)  # noqa: ASYNC251 - blocking is the point


def compare_with_truth(run: Run, truth: dict[int, dict[str, Any]]) -> Outcomes:
    """Compare reported percentiles with the true ones.

    The true TTFT begins when the request is written to a connected socket; delays before that (late start,
    connecting) are the client's error.
    """
    records = [record for record in run.records if record.outcome is Outcome.OK]
    ttft = np.array([record.ttft_ms for record in records])
    itl = np.concatenate([np.diff(record.token_times) for record in records]) * 1e3
    true_ttft = np.array([truth[r.number]["sent"][0] - (r.sent or 0.0) for r in records]) * 1e3
    true_itl = np.concatenate([np.diff(truth[r.number]["sent"]) for r in records]) * 1e3
    pairs = (("ttft", ttft, true_ttft), ("itl", itl, true_itl))
    comparisons = [
        Comparison(name, point, float(np.quantile(reported, share)), float(np.quantile(true, share)))
        for name, reported, true in pairs
        for point, share in POINTS.items()
        if reported.size * (1 - share) >= 1
    ]
    late = np.concatenate([np.asarray(r.token_times) - truth[r.number]["sent"] for r in records]) * 1e3
    lateness = {point: float(np.quantile(late, share)) for point, share in POINTS.items()}
    return Outcomes(comparisons, client_health(run), lateness, len(records))


def _print(found: Outcomes, console: Console) -> None:
    table = Table(box=None, header_style="dim", padding=(0, 2))
    for name in ("", "", "reported ms", "true ms", "off by", ""):
        table.add_column(name, justify="right" if name else "left")
    for c in found.comparisons:
        off = c.reported_ms - c.true_ms
        verdict = "[green]close[/]" if c.is_close else "[red]off[/]"
        figures = (f"{c.reported_ms:.2f}", f"{c.true_ms:.2f}", f"{off:+.2f} ms")
        table.add_row(c.measure.upper(), c.point, *figures, verdict)
    console.print(table)
    health = found.health
    console.print(f"{health.events_per_s:,.0f} events/s with {health.cpu_share:.0%} of a core. {health.says}")
