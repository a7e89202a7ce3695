"""Raises a load step by step until the server is saturated.

Concurrency doubles until a doubling gains less than a tenth of throughput; a rate doubles until the server no
longer keeps up, then is found by bisection. Either ends when fewer than nine tenths of the requests meet a
stated objective.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
from rich.console import Console
from rich.table import Table

from loadgen.cli.units import number
from loadgen.load.live import choose_view
from loadgen.load.measure import Screen, measure
from loadgen.load.options import ServeOptions
from loadgen.load.plan import Plan, plan_of, settings_of
from loadgen.load.target import Target
from loadgen.report.charts import Frame, Series, line_chart
from loadgen.report.page import page_of
from loadgen.report.page_parts import Section, card
from loadgen.report.tables import compact_json
from loadgen.results.health import Verdict
from loadgen.results.summary import Summary, summarise

LEAST_GAIN = 1.1  # of throughput, from doubling the concurrency
KEEPS_UP = 0.95  # share of requests answered in time at a sustained rate
GOOD_ENOUGH = 0.9  # share of requests that meet the objectives
REFINEMENTS = 3
MAX_STEPS = 16
LONGEST_STEP_S = 30.0


class Point(msgspec.Struct, frozen=True):
    """One step of a sweep. `is_sustained`: the server kept up with this load."""

    level: float
    is_sustained: bool
    why: str
    output_tokens_per_s: float
    requests_per_s: float
    good_share: float | None
    ttft_p50_ms: float | None
    ttft_p95_ms: float | None
    itl_p50_ms: float | None
    itl_p95_ms: float | None


def next_concurrency(points: Sequence[Point], first: float) -> float | None:
    """The next level to try; None at the end."""
    if not points:
        return first
    return None if not points[-1].is_sustained or len(points) >= MAX_STEPS else points[-1].level * 2


def next_rate(points: Sequence[Point], first: float) -> float | None:
    """The next rate: doubled up to the first that is not sustained, then bisected a few times."""
    if not points:
        return first
    kept = [point.level for point in points if point.is_sustained]
    broken = [point.level for point in points if not point.is_sustained]
    if len(points) >= MAX_STEPS:
        return None
    if not broken:
        return max(kept) * 2
    if not kept:
        return min(broken) / 2 if len(broken) < 6 else None
    low, high = max(kept), min(broken)
    num_halved = sum(level < max(broken) and level > min(kept) for level in (*kept, *broken))
    return (low + high) / 2 if high / low > 1.1 and num_halved < REFINEMENTS + len(kept) else None


async def sweep(target: Target, plan: Plan, options: ServeOptions, console: Console) -> int:
    """Run the steps, report, and say where the server is saturated."""
    is_rate = options.sweep == "rate"
    points: list[Point] = []
    summaries: list[Summary] = []
    screen = Screen(choose_view(options.quiet), "sweep")
    first = _first_level(options)
    propose = next_rate if is_rate else next_concurrency
    try:
        while (level := propose(points, first)) is not None:
            screen.title = f"sweep: {level:g} {'requests/s' if is_rate else 'streams'}"
            summary = await _step(target, options, level, screen)
            points.append(_point(level, summary, summaries[-1] if summaries else None, is_rate))
            summaries.append(summary)
            if summary.client.verdict is Verdict.SATURATED:
                break  # figures beyond this say nothing about the server
    finally:
        screen.view.close()
    best = _best(points)
    if not options.quiet:
        _print(points, best, console, is_rate)
    if options.out:
        _write(Path(options.out), points, summaries, is_rate)
    line = {
        "benchmark": "sweep",
        "of": options.sweep,
        "server": target.server_info.kind,
        "model": target.server_info.model,
    }
    points_found = msgspec.to_builtins(points)
    sustained = None if best is None else best.level
    print(compact_json({**line, "sustained": sustained, "points": points_found}), flush=True)
    return 0


def _first_level(options: ServeOptions) -> float:
    if options.sweep == "rate":
        return number(options.rate or "1", "first rate of a sweep")
    return float(options.concurrency or 1)


async def _step(target: Target, options: ServeOptions, level: float, screen: Screen) -> Summary:
    """Run one level for the given time, or long enough for several requests per stream."""
    changes: dict[str, Any] = (
        {"rate": f"{level:g}"} if options.sweep == "rate" else {"concurrency": int(level), "rate": None}
    )
    if options.duration is None and options.requests is None:
        changes |= {"duration": f"{LONGEST_STEP_S:g}s", "requests": max(20, int(level * 4))}
    plan = plan_of(msgspec.structs.replace(options, **changes))
    run = await measure(target, plan, screen)
    run.label, run.settings = f"{level:g}", settings_of(plan.options)
    return summarise(run, plan.slo, plan.trim)


def _point(level: float, summary: Summary, before: Summary | None, is_rate: bool) -> Point:
    why = _why_not_sustained(summary, before, is_rate)
    ttft, itl = summary.latencies.ttft, summary.latencies.itl
    return Point(
        level=level,
        is_sustained=not why,
        why=why,
        output_tokens_per_s=summary.throughput.output_tokens_per_s,
        requests_per_s=summary.throughput.requests_per_s,
        good_share=summary.throughput.good_share,
        ttft_p50_ms=ttft.p50 if ttft else None,
        ttft_p95_ms=ttft.p95 if ttft else None,
        itl_p50_ms=itl.p50 if itl else None,
        itl_p95_ms=itl.p95 if itl else None,
    )


def _why_not_sustained(summary: Summary, before: Summary | None, is_rate: bool) -> str:
    """Why the server did not keep up; empty if it did."""
    rates = summary.throughput
    if summary.client.verdict is Verdict.SATURATED:
        return "the load generator is saturated"
    if summary.outcomes.get("ok", 0) < GOOD_ENOUGH * summary.num_requests:
        return "requests were refused or failed"
    if summary.slo.are_stated and rates.good_share is not None and rates.good_share < GOOD_ENOUGH:
        return "objectives were missed"
    if is_rate:
        return "answers fell behind requests" if rates.requests_per_s < KEEPS_UP * rates.offered_per_s else ""
    gained = before is None or rates.output_tokens_per_s >= LEAST_GAIN * before.throughput.output_tokens_per_s
    return "" if gained else "throughput no longer rises"


def _best(points: Sequence[Point]) -> Point | None:
    """The highest sustained load."""
    return max((point for point in points if point.is_sustained), key=lambda point: point.level, default=None)


def _print(points: Sequence[Point], best: Point | None, console: Console, is_rate: bool) -> None:
    unit = "requests/s" if is_rate else "streams"
    table = Table(box=None, header_style="dim", padding=(0, 2))
    for name in (unit, "tokens/s", "requests/s", "TTFT p50", "TTFT p95", "ITL p50", "ITL p95", ""):
        table.add_column(name, justify="right" if name else "left")
    for point in sorted(points, key=lambda point: point.level):
        figures = (point.ttft_p50_ms, point.ttft_p95_ms, point.itl_p50_ms, point.itl_p95_ms)
        cells = ("-" if value is None else f"{value:.1f} ms" for value in figures)
        rates = (f"{point.level:g}", f"{point.output_tokens_per_s:,.1f}", f"{point.requests_per_s:.2f}")
        table.add_row(*rates, *cells, point.why, style="bold" if point is best else "")
    console.print(table)
    if best is not None:
        console.print(
            f"Sustained up to {best.level:g} {unit} ({best.output_tokens_per_s:,.1f} output tokens/s)."
        )
    else:
        console.print("Not even the smallest load was sustained.")


def _write(out: Path, points: Sequence[Point], summaries: Sequence[Summary], is_rate: bool) -> None:
    out.mkdir(parents=True, exist_ok=True)
    (out / "sweep.json").write_bytes(msgspec.json.format(msgspec.json.encode(points), indent=2))
    ordered = sorted(points, key=lambda point: point.level)
    frame = Frame(x_label="requests/s" if is_rate else "streams", y_label="output tokens/s", is_log_x=True)
    speed = Series("output tokens/s", [(p.level, p.output_tokens_per_s) for p in ordered], "c1", is_area=True)
    waits = [
        Series("TTFT p50", [(p.level, p.ttft_p50_ms) for p in ordered if p.ttft_p50_ms is not None], "c1"),
        Series("TTFT p95", [(p.level, p.ttft_p95_ms) for p in ordered if p.ttft_p95_ms is not None], "c2"),
    ]
    waiting = line_chart(waits, msgspec.structs.replace(frame, y_label="ms"))
    cards = card("Throughput", line_chart([speed], frame)) + card("Time to first token", waiting)
    section = Section("Sweep", f'<div class="cards">{cards}</div>')
    chosen = max(summaries, key=lambda summary: summary.throughput.output_tokens_per_s)
    (out / "report.html").write_text(page_of([chosen], title="Sweep", sections=[section]))
