"""A run over time, in about sixty bins."""

import itertools
import math
from collections.abc import Sequence

import msgspec
import numpy as np
import numpy.typing as npt

from loadgen.client.records import Outcome, Record
from loadgen.load.run import Run
from loadgen.results.stats import percentile

NUM_BINS = 60
WIDTHS_S = (0.1, 0.2, 0.5, 1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 1800, 3600)

Floats = npt.NDArray[np.float64]


class Bin(msgspec.Struct, frozen=True):
    """One bin of time. Latencies are None if nothing was measured in it."""

    start_s: float
    output_tokens_per_s: float
    requests_per_s: float  # successful ones
    started_per_s: float
    in_flight: float  # mean
    num_refused: int
    num_failed: int
    ttft_p50_ms: float | None
    ttft_p95_ms: float | None
    itl_p50_ms: float | None
    itl_p95_ms: float | None
    mean_exit_layer: float | None
    server_waiting: float | None


class Timeline(msgspec.Struct, frozen=True):
    width_s: float
    bins: list[Bin]

    @property
    def starts_s(self) -> list[float]:
        return [bucket.start_s for bucket in self.bins]


def bin_width_s(duration_s: float) -> float:
    """The finest round width that gives at most `NUM_BINS` bins."""
    return next((width for width in WIDTHS_S if duration_s / width <= NUM_BINS), float(WIDTHS_S[-1]))


def timeline_of(run: Run) -> Timeline:
    width = bin_width_s(run.duration_s)
    edges = [index * width for index in range(math.ceil(run.duration_s / width) + 1)]
    marks = _Marks(run, run.records)
    return Timeline(width, [_bin(run, marks, low, high) for low, high in itertools.pairwise(edges)])


class _Marks:
    """All events of a run, as arrays of times since the start."""

    def __init__(self, run: Run, records: Sequence[Record]):
        began = run.began
        self.tokens = _concat([np.asarray(r.token_times) for r in records]) - began
        self.gap_ends = _concat([np.asarray(r.token_times)[1:] for r in records]) - began
        self.gaps_ms = _concat([np.diff(np.asarray(r.token_times)) for r in records]) * 1e3
        self.starts = np.array([r.intended for r in records]) - began
        self.ends = np.array([r.ended if r.ended is not None else run.ended for r in records]) - began
        self.is_ok = np.array([r.outcome is Outcome.OK for r in records], dtype=bool)
        self.is_refused = np.array([r.outcome is Outcome.REFUSED for r in records], dtype=bool)
        self.is_failed = np.array([r.outcome.is_failure for r in records], dtype=bool)
        first = [(r.token_times[0] - began, r.ttft_ms) for r in records if r.ttft_ms is not None]
        self.first_tokens = np.array([at for at, _ in first])
        self.ttfts_ms = np.array([ttft for _, ttft in first])
        known = [r for r in records if len(r.exit_layers) == len(r.token_times)]
        self.layer_times = _concat([np.asarray(r.token_times) for r in known]) - began
        self.layers = _concat([np.asarray(r.exit_layers, dtype=np.float64) for r in known])


def _concat(parts: list[Floats]) -> Floats:
    return np.concatenate(parts) if parts else np.empty(0)


def _bin(run: Run, marks: _Marks, low: float, high: float) -> Bin:
    width = high - low
    ended = (marks.ends >= low) & (marks.ends < high)
    ttfts = marks.ttfts_ms[(marks.first_tokens >= low) & (marks.first_tokens < high)]
    gaps = marks.gaps_ms[(marks.gap_ends >= low) & (marks.gap_ends < high)]
    layers = marks.layers[(marks.layer_times >= low) & (marks.layer_times < high)]
    overlap = np.clip(np.minimum(marks.ends, high) - np.maximum(marks.starts, low), 0.0, None)
    return Bin(
        start_s=round(low, 3),
        output_tokens_per_s=_rate(marks.tokens, low, high),
        requests_per_s=float((ended & marks.is_ok).sum()) / width,
        started_per_s=_rate(marks.starts, low, high),
        in_flight=float(overlap.sum()) / width,
        num_refused=int((ended & marks.is_refused).sum()),
        num_failed=int((ended & marks.is_failed).sum()),
        ttft_p50_ms=_quantile(ttfts, 0.5),
        ttft_p95_ms=_quantile(ttfts, 0.95),
        itl_p50_ms=_quantile(gaps, 0.5),
        itl_p95_ms=_quantile(gaps, 0.95),
        mean_exit_layer=float(layers.mean()) if layers.size else None,
        server_waiting=_waiting(run, low, high),
    )


def _rate(times: Floats, low: float, high: float) -> float:
    return float(((times >= low) & (times < high)).sum()) / (high - low)


def _quantile(values: Floats, share: float) -> float | None:
    """A quantile of a bin, whose few values may not reach it: then the largest."""
    found = percentile(values, share)
    return found if found is not None else float(values.max()) if values.size else None


def _waiting(run: Run, low: float, high: float) -> float | None:
    inside = [scrape.get("waiting") for scrape in run.scrapes if low <= run.since_start(scrape.at) < high]
    known = [value for value in inside if value is not None]
    return sum(known) / len(known) if known else None
