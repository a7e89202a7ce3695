"""The summary of a run: all figures of the table, the JSON and the page."""

from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

import msgspec
import numpy as np

from loadgen.client.records import Outcome, Record
from loadgen.client.server_info import ServerInfo
from loadgen.load.run import Run
from loadgen.load.slo import SLO
from loadgen.load.trim import Trim
from loadgen.results.exits import Exits, exit_figures
from loadgen.results.health import ClientHealth, client_health
from loadgen.results.integrity import Integrity, integrity_of
from loadgen.results.server import ServerSays, server_says
from loadgen.results.stats import Distribution, describe
from loadgen.results.swaps import Swap, Version, swaps_of, versions_of
from loadgen.results.timeline import Floats, Timeline, timeline_of
from loadgen.results.window import Window, measured_records, measured_window


class Latencies(msgspec.Struct, frozen=True):
    """Latencies in ms from the intended start of each request. None: nothing measured."""

    ttft: Distribution | None
    itl: Distribution | None
    tpot: Distribution | None
    e2e: Distribution | None
    queue: Distribution | None  # where the server tells


class Quantiles(msgspec.Struct, frozen=True):
    """Latency curves for plots: the values, in ms, below which each of `SHARES` of the samples lie."""

    ttft: list[float]
    itl: list[float]
    e2e: list[float]


SHARES = [round(0.005 * step, 3) for step in range(200)] + [0.999, 1.0]


class Throughput(msgspec.Struct, frozen=True):
    """Rates within the measured window."""

    requests_per_s: float
    offered_per_s: float
    output_tokens_per_s: float
    total_tokens_per_s: float
    good_per_s: float
    good_share: float | None  # of requests meant to start in the window, except cancelled ones
    mean_in_flight: float


class Summary(msgspec.Struct, frozen=True, kw_only=True):
    """All figures of a run."""

    label: str
    url: str
    server_info: ServerInfo
    settings: dict[str, Any]
    began_at_s: float
    duration_s: float
    window: Window
    num_requests: int
    num_measured: int
    outcomes: dict[str, int]
    failures: dict[str, int]  # by message, the most frequent first
    input_tokens: Distribution | None
    cached_share: float | None  # of input tokens, that the server had computed before; None: it does not tell
    output_tokens: Distribution | None
    throughput: Throughput
    slo: SLO
    latencies: Latencies
    by_group: dict[str, Latencies]
    quantiles: Quantiles
    client: ClientHealth
    integrity: Integrity
    exits: Exits | None
    swaps: list[Swap]
    versions: list[Version]
    timeline: Timeline
    server: ServerSays
    notes: list[str]


class Measured(NamedTuple):
    """A run and its figures."""

    run: Run
    summary: Summary


def summarise(run: Run, slo: SLO, trim: Trim) -> Summary:
    """Compute all figures of a run."""
    window = measured_window(run, trim)
    measured = measured_records(run, window)
    timeline = timeline_of(run)
    return Summary(
        label=run.label,
        url=run.url,
        server_info=run.server_info,
        settings=run.settings,
        began_at_s=run.began_at_s,
        duration_s=run.duration_s,
        window=window,
        num_requests=len(run.records),
        num_measured=len(measured),
        outcomes=dict(Counter(record.outcome.value for record in run.records)),
        failures=_failures(run.records),
        input_tokens=describe([r.input_tokens for r in measured if r.input_tokens is not None]),
        cached_share=_cached_share(measured),
        output_tokens=describe([r.num_tokens for r in measured if r.outcome is Outcome.OK]),
        throughput=_throughput(run, window, measured, slo),
        slo=slo,
        latencies=latencies_of(measured),
        by_group=_by_group(measured),
        quantiles=quantiles_of(measured),
        client=client_health(run),
        integrity=integrity_of(run.records),
        exits=exit_figures(run.records, timeline.starts_s, run.began),
        swaps=swaps_of(run),
        versions=versions_of(run),
        timeline=timeline,
        server=server_says(run),
        notes=run.notes,
    )


def latencies_of(records: Sequence[Record]) -> Latencies:
    """Latencies of complete answers; failed and cut ones are counted, not timed."""
    whole = [record for record in records if record.outcome is Outcome.OK]
    gaps = [np.diff(np.asarray(record.token_times)) for record in whole]
    return Latencies(
        ttft=describe([r.ttft_ms for r in whole if r.ttft_ms is not None]),
        itl=describe(np.concatenate(gaps) * 1e3 if gaps else []),
        tpot=describe([r.tpot_ms for r in whole if r.tpot_ms is not None]),
        e2e=describe([r.e2e_ms for r in whole if r.e2e_ms is not None]),
        queue=describe([r.queue_ms for r in whole if r.queue_ms is not None]),
    )


def quantiles_of(records: Sequence[Record]) -> Quantiles:
    whole = [record for record in records if record.outcome is Outcome.OK]
    gaps = [np.diff(np.asarray(record.token_times)) * 1e3 for record in whole]
    return Quantiles(
        ttft=_curve(np.array([r.ttft_ms for r in whole if r.ttft_ms is not None])),
        itl=_curve(np.concatenate(gaps) if gaps else np.empty(0)),
        e2e=_curve(np.array([r.e2e_ms for r in whole if r.e2e_ms is not None])),
    )


def _curve(values: Floats) -> list[float]:
    curve: list[float] = np.quantile(values, SHARES).tolist() if values.size else []
    return curve


def _by_group(records: Sequence[Record]) -> dict[str, Latencies]:
    groups = sorted({record.group for record in records})
    if len(groups) < 2:
        return {}
    return {group: latencies_of([r for r in records if r.group == group]) for group in groups}


def _cached_share(measured: Sequence[Record]) -> float | None:
    told = [r for r in measured if r.cached_tokens is not None and r.input_tokens]
    total = sum(r.input_tokens or 0 for r in told)
    return sum(r.cached_tokens or 0 for r in told) / total if total else None


def _failures(records: Sequence[Record]) -> dict[str, int]:
    failures = Counter(f"{r.outcome}: {r.detail}" for r in records if r.outcome.is_failure)
    return dict(failures.most_common(10))


def _throughput(run: Run, window: Window, measured: Sequence[Record], slo: SLO) -> Throughput:
    seconds = max(window.duration_s, 1e-9)
    low, high = run.began + window.start_s, run.began + window.end_s
    output = sum(_tokens_inside(record, low, high) for record in run.records)
    taken = sum(r.input_tokens or 0 for r in run.records if r.token_times and low <= r.token_times[0] <= high)
    judged = [record for record in measured if record.outcome is not Outcome.CANCELLED]
    good = sum(slo.are_met(record) for record in judged)
    parts = [
        (record, _part_inside(record, low, high)) for record in run.records if record.outcome is Outcome.OK
    ]
    busy = sum(max(0.0, min(r.ended or run.ended, high) - max(r.intended, low)) for r in run.records)
    return Throughput(
        requests_per_s=sum(part for _, part in parts) / seconds,
        offered_per_s=len(measured) / seconds,
        output_tokens_per_s=output / seconds,
        total_tokens_per_s=(output + taken) / seconds,
        good_per_s=sum(part for record, part in parts if slo.are_met(record)) / seconds,
        good_share=good / len(judged) if judged else None,
        mean_in_flight=busy / seconds,
    )


def _part_inside(record: Record, low: float, high: float) -> float:
    """Fraction of a request's time within a period.

    Counting fractions instead of ends keeps streams that end together from counting all or not at all.
    """
    end = record.ended if record.ended is not None else record.intended
    if end <= record.intended:
        return float(low <= end <= high)
    return max(0.0, min(end, high) - max(record.intended, low)) / (end - record.intended)


def _tokens_inside(record: Record, low: float, high: float) -> float:
    """Tokens that came within a period; events with several tokens count in proportion."""
    times = np.asarray(record.token_times)
    if not times.size:
        return 0.0
    share = float(((times >= low) & (times <= high)).mean())
    return share * max(record.num_tokens, times.size)
