"""The plots of a run: latency curves, values over time, exit layers."""

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
    """Throughput, load, latencies and failures over time; swaps are marked, the measured window is shaded."""

    def line(name: str, colour: str, value: Callable[[Bin], float | None], is_area: bool = False) -> Series:
        return _line(summary, name, colour, value, is_area)

    width_s = summary.timeline.width_s
    speed = line("tokens/s", "c1", lambda bucket: bucket.output_tokens_per_s, True)
    load = (
        line("in flight", "c1", lambda bucket: bucket.in_flight, True),
        line("waiting at the server", "c2", lambda bucket: bucket.server_waiting),
    )
    ttft = (
        line("p50", "c1", lambda bucket: bucket.ttft_p50_ms),
        line("p95", "c2", lambda bucket: bucket.ttft_p95_ms),
    )
    itl = (
        line("p50", "c1", lambda bucket: bucket.itl_p50_ms),
        line("p95", "c2", lambda bucket: bucket.itl_p95_ms),
    )
    requests = (
        line("started", "c5", lambda bucket: bucket.started_per_s),
        line("answered", "c3", lambda bucket: bucket.requests_per_s),
        line("refused", "c2", lambda bucket: bucket.num_refused / width_s),
        line("failed", "c6", lambda bucket: bucket.num_failed / width_s),
    )
    return [
        ("Output tokens per second", _chart(summary, "tokens/s", speed, is_wide=True)),
        ("Streams in flight", _chart(summary, "streams", *load)),
        ("Time to first token", _chart(summary, "ms", *ttft)),
        ("Inter-token latency", _chart(summary, "ms", *itl)),
        ("Requests per second", _chart(summary, "requests/s", *requests)),
    ]


def _line(
    summary: Summary, name: str, colour: str, value: Callable[[Bin], float | None], is_area: bool = False
) -> Series:
    """A line of one value per bin, at the bin's middle; bins without a value are skipped."""
    half = summary.timeline.width_s / 2
    points = [
        (bucket.start_s + half, found)
        for bucket in summary.timeline.bins
        if (found := value(bucket)) is not None
    ]
    return Series(name, points, colour, is_area)


def _chart(summary: Summary, unit: str, *series: Series, is_wide: bool = False) -> str:
    drawn = [line for line in series if any(y for _, y in line.points)] or list(series[:1])
    band = (summary.window.start_s, summary.window.end_s)
    marks = swap_marks(summary)
    return line_chart(drawn, Frame(x_label="seconds", y_label=unit, marks=marks, band=band, is_wide=is_wide))


def swap_marks(summary: Summary) -> list[Mark]:
    """Marks of swaps, numbered as in the table of swaps."""
    return [
        Mark(swap.until_s, str(index), f"{swap.until_s:.1f} s: {swap.to} {swap.outcome}")
        for index, swap in enumerate(summary.swaps, start=1)
    ]


def depth(summary: Summary) -> Plots:
    """Exit layers of tokens, over time and by class."""
    exits = summary.exits
    if exits is None:
        return []
    columns = [sum(column) or 1 for column in zip(*exits.heat.counts, strict=True)]
    shares = [[n / total for n, total in zip(row, columns, strict=True)] for row in exits.heat.counts]
    layers = [str(layer) for layer in exits.heat.layers]
    names = [f"layer {layer}" for layer in layers]
    frame = Frame(x_label="seconds", y_label="layer", marks=swap_marks(summary))
    groups = {**exits.by_group, "all": exits.total} if len(exits.by_group) > 1 else exits.by_group
    bars = [(name, [d.share_by_layer.get(n, 0.0) for n in exits.heat.layers]) for name, d in groups.items()]
    mean = _line(summary, "mean exit layer", "c4", lambda bucket: bucket.mean_exit_layer)
    return [
        ("Exit layer over time", heat_map(Heat(layers, exits.heat.starts_s, shares), frame)),
        ("Mean exit layer", _chart(summary, "layer", mean)),
        ("Exit layer by class of prompt", stacked_bars(bars, names)),
    ]
