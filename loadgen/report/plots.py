"""Which plots a run deserves: latency curves, its course over time, where tokens left the model."""

from collections.abc import Callable, Sequence

from loadgen.report.charts import Frame, Heat, Mark, Points, Series, heat_map, line_chart, stacked_bars
from loadgen.results.summary import SHARES, Summary
from loadgen.results.timeline import Bin

Plots = list[tuple[str, str]]  # heading and HTML


def latency_curves(summaries: Sequence[Summary]) -> Plots:
    """Share of samples below each latency; a line per run."""
    frame = Frame(x_label="ms", y_label="share of samples at most this long, %", is_log_x=True)
    curves = []
    for field, name in (
        ("ttft", "Time to first token"),
        ("itl", "Inter-token latency"),
        ("e2e", "End to end"),
    ):
        series = [
            Series(summary.label, _cumulative(getattr(summary.quantiles, field)), f"c{index % 6 + 1}")
            for index, summary in enumerate(summaries)
        ]
        curves.append((name, line_chart(series, frame)))
    return curves


def _cumulative(values: Sequence[float]) -> Points:
    points = zip(values, SHARES, strict=True) if values else ()
    return [(value, share * 100) for value, share in points if value > 0]


def over_time(summary: Summary) -> Plots:
    """Throughput, load, latencies and trouble over the run; swaps are marked, the measured part shaded."""
    return [
        (
            "Output tokens per second",
            _chart(summary, "tokens/s", _line(summary, "tokens/s", "c1", _tokens, True)),
        ),
        (
            "Streams in flight",
            _chart(
                summary,
                "streams",
                _line(summary, "in flight", "c1", lambda bin: bin.in_flight, True),
                _line(summary, "waiting at the server", "c2", lambda bin: bin.server_waiting),
            ),
        ),
        (
            "Time to first token",
            _chart(
                summary,
                "ms",
                _line(summary, "p50", "c1", lambda bin: bin.ttft_p50_ms),
                _line(summary, "p95", "c2", lambda bin: bin.ttft_p95_ms),
            ),
        ),
        (
            "Inter-token latency",
            _chart(
                summary,
                "ms",
                _line(summary, "p50", "c1", lambda bin: bin.itl_p50_ms),
                _line(summary, "p95", "c2", lambda bin: bin.itl_p95_ms),
            ),
        ),
        (
            "Requests per second",
            _chart(
                summary,
                "requests/s",
                _line(summary, "started", "c5", lambda bin: bin.started_per_s),
                _line(summary, "answered", "c3", lambda bin: bin.requests_per_s),
                _line(summary, "refused", "c2", _refused_per_s(summary)),
                _line(summary, "failed", "c6", _failed_per_s(summary)),
            ),
        ),
    ]


def _tokens(bin: Bin) -> float:
    return bin.output_tokens_per_s


def _refused_per_s(summary: Summary) -> Callable[[Bin], float]:
    return lambda bin: bin.num_refused / summary.timeline.width_s


def _failed_per_s(summary: Summary) -> Callable[[Bin], float]:
    return lambda bin: bin.num_failed / summary.timeline.width_s


def _line(
    summary: Summary, name: str, colour: str, value: Callable[[Bin], float | None], is_area: bool = False
) -> Series:
    """A value of each bin, drawn at the middle of the bin; bins without one are passed over."""
    half = summary.timeline.width_s / 2
    points = [
        (bin.start_s + half, found) for bin in summary.timeline.bins if (found := value(bin)) is not None
    ]
    return Series(name, points, colour, is_area)


def _chart(summary: Summary, unit: str, *series: Series) -> str:
    drawn = [line for line in series if any(y for _, y in line.points)] or list(series[:1])
    band = (summary.window.start_s, summary.window.end_s)
    return line_chart(drawn, Frame(x_label="seconds", y_label=unit, marks=swap_marks(summary), band=band))


def swap_marks(summary: Summary) -> list[Mark]:
    """Swaps by number, as in the table of swaps."""
    return [
        Mark(swap.until_s, str(index), f"{swap.until_s:.1f} s: {swap.to} {swap.outcome}")
        for index, swap in enumerate(summary.swaps, start=1)
    ]


def depth(summary: Summary) -> Plots:
    """Where tokens left the model, over time and by class."""
    exits = summary.exits
    if exits is None:
        return []
    columns = [sum(column) or 1 for column in zip(*exits.heat.counts, strict=True)]
    shares = [[n / total for n, total in zip(row, columns, strict=True)] for row in exits.heat.counts]
    layers = [str(layer) for layer in exits.heat.layers]
    frame = Frame(x_label="seconds", y_label="layer", marks=swap_marks(summary))
    groups = {**exits.by_group, "all": exits.total} if len(exits.by_group) > 1 else exits.by_group
    bars = [(name, [d.share_by_layer.get(n, 0.0) for n in exits.heat.layers]) for name, d in groups.items()]
    return [
        ("Exit layer over time", heat_map(Heat(layers, exits.heat.starts_s, shares), frame)),
        ("Exit layer by class of prompt", stacked_bars(bars, layers)),
        (
            "Mean exit layer",
            _chart(
                summary, "layer", _line(summary, "mean exit layer", "c4", lambda bin: bin.mean_exit_layer)
            ),
        ),
    ]
