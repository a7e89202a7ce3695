"""Checks by the client's own lag whether it kept up: measurements cannot be more exact."""

import enum

import msgspec
import numpy as np

from loadgen.load.run import Run
from loadgen.results.stats import percentile

STRAINED_MS = 2.0  # lag at p99 from which latencies are reported as inexact
SATURATED_MS = 20.0
SATURATED_MEAN_MS = 2.0
SATURATED_CPU = 0.95  # of one core


class Verdict(enum.StrEnum):
    FINE = "fine"
    STRAINED = "strained"
    SATURATED = "saturated"


class ClientHealth(msgspec.Struct, frozen=True):
    """Health of the load generator. `says` is one sentence for the user."""

    verdict: Verdict
    says: str
    lag_mean_ms: float
    lag_p99_ms: float
    lag_max_ms: float
    start_delay_p99_ms: float  # delay of open-loop starts behind their schedule
    cpu_share: float  # of one core
    events_per_s: float
    num_reconnected: int


def client_health(run: Run) -> ClientHealth:
    lags = np.asarray(run.lags, dtype=np.float64) * 1e3
    lag_p99 = _or_max(lags, 0.99)
    delays = np.array([record.start_delay_ms for record in run.records if record.turn == 0])
    delay_p99 = _or_max(delays, 0.99) if run.is_open_loop and run.concurrency is None else 0.0
    mean = float(lags.mean()) if lags.size else 0.0
    cpu_share = run.cpu_s / run.duration_s if run.duration_s > 0 else 0.0
    verdict = _verdict(mean, max(lag_p99, delay_p99), cpu_share)
    return ClientHealth(
        verdict=verdict,
        says=_sentence(verdict, lag_p99, delay_p99),
        lag_mean_ms=mean,
        lag_p99_ms=lag_p99,
        lag_max_ms=float(lags.max()) if lags.size else 0.0,
        start_delay_p99_ms=delay_p99,
        cpu_share=cpu_share,
        events_per_s=sum(len(r.token_times) for r in run.records) / run.duration_s
        if run.duration_s > 0
        else 0.0,
        num_reconnected=sum(record.was_reconnected for record in run.records),
    )


def _or_max(values: "np.ndarray[tuple[int], np.dtype[np.float64]]", share: float) -> float:
    found = percentile(values, share)
    return found if found is not None else float(values.max()) if values.size else 0.0


def _verdict(mean_ms: float, worst_ms: float, cpu_share: float) -> Verdict:
    if mean_ms > SATURATED_MEAN_MS or worst_ms > SATURATED_MS or cpu_share > SATURATED_CPU:
        return Verdict.SATURATED
    return Verdict.STRAINED if worst_ms > STRAINED_MS else Verdict.FINE


def _sentence(verdict: Verdict, lag_p99_ms: float, delay_p99_ms: float) -> str:
    off = f"{max(lag_p99_ms, delay_p99_ms):.1f} ms"
    match verdict:
        case Verdict.SATURATED:
            return (
                f"The load generator could not keep up (late by up to {off} at p99): "
                "these figures measure the client as much as the server. Give it a core, or less to do."
            )
        case Verdict.STRAINED:
            return f"The load generator was late by up to {off} at p99; read latencies with that in mind."
        case Verdict.FINE:
            return f"The load generator kept up (late by {off} at p99)."
