"""Prints a run as a table on the terminal and as one line of JSON."""

from typing import Any

import msgspec
from rich.console import Console, Group
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from loadgen.results.health import Verdict
from loadgen.results.stats import Distribution
from loadgen.results.summary import Summary

MEASURES = (("ttft", "TTFT"), ("itl", "ITL"), ("tpot", "TPOT"), ("e2e", "E2E"), ("queue", "queue"))


def print_summary(summary: Summary, console: Console) -> None:
    """Print the summary table."""
    parts: list[Any] = [_headline(summary), Text(), _latency_table(summary), Text(), _outcome_line(summary)]
    if summary.exits is not None:
        parts += [Text(), _exit_table(summary)]
    if summary.swaps:
        parts += [Text(), _swap_table(summary)]
    parts += [Text(), *_remarks(summary)]
    console.print(Panel(Group(*parts), title=f"[bold]{summary.label}", border_style="dim", padding=(1, 2)))


def _headline(summary: Summary) -> Table:
    rates = summary.throughput
    grid = Table.grid(padding=(0, 4))
    grid.add_row(
        f"[bold cyan]{rates.output_tokens_per_s:,.1f}[/] output tokens/s",
        f"[bold cyan]{rates.requests_per_s:,.2f}[/] requests/s",
        f"[bold]{rates.mean_in_flight:,.1f}[/] in flight",
    )
    grid.add_row(
        f"{rates.total_tokens_per_s:,.1f} total tokens/s", f"{rates.offered_per_s:,.2f} offered/s", ""
    )
    if summary.cached_share is not None:
        grid.add_row(f"{summary.cached_share:.1%} of input tokens cached", "", "")
    if summary.slo.are_stated and rates.good_share is not None:
        goodput = f"[bold cyan]{rates.good_per_s:,.2f}[/] good requests/s"
        grid.add_row(goodput, f"{rates.good_share:.1%} good", "")
    return grid


def _latency_table(summary: Summary) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim", padding=(0, 2))
    for name in ("ms", "mean", "p50", "p90", "p95", "p99", "p99.9", "max"):
        table.add_column(name, justify="left" if name == "ms" else "right")
    for field, name in MEASURES:
        found: Distribution | None = getattr(summary.latencies, field)
        if found is not None:
            points = (found.mean, found.p50, found.p90, found.p95, found.p99, found.p999, found.max)
            table.add_row(name, *(_number(value) for value in points))
    return table


def _outcome_line(summary: Summary) -> Text:
    names = sorted(summary.outcomes.items(), key=lambda item: -item[1])
    words = ", ".join(f"{count:,} {name.replace('_', ' ')}" for name, count in names)
    text = Text(f"{summary.num_requests:,} requests: {words}")
    for sentence, count in summary.failures.items():
        text.append(f"\n  {count} x {sentence}", style="red")
    whole = summary.integrity
    if not whole.is_whole:
        text.append(
            f"\nlost {whole.lost}, duplicated {whole.duplicated}, mixed {whole.mixed}", style="bold red"
        )
        text.append("".join(f"\n  {line}" for line in whole.examples), style="red")
    return text


def _exit_table(summary: Summary) -> Table:
    assert summary.exits is not None
    table = Table(box=None, pad_edge=False, header_style="dim", padding=(0, 2))
    layers = sorted(summary.exits.total.share_by_layer)
    table.add_column("tokens left at layer")
    for name in [*(str(layer) for layer in layers), "mean", "confidence", "tokens"]:
        table.add_column(name, justify="right")
    for group, depth in {**summary.exits.by_group, "all": summary.exits.total}.items():
        shares = (f"{depth.share_by_layer.get(layer, 0):.1%}" for layer in layers)
        confidence = "-" if depth.mean_confidence is None else f"{depth.mean_confidence:.3f}"
        table.add_row(group, *shares, f"{depth.mean_layer:.1f}", confidence, f"{depth.num_tokens:,}")
    return table


def _swap_table(summary: Summary) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim", padding=(0, 2))
    for name in ("swap at", "to", "outcome", "took", "streams", "longest gap", "median gap"):
        table.add_column(name)
    for swap in summary.swaps[:20]:
        took = f"{sum(swap.phases_ms.values()):.0f} ms" if swap.phases_ms else "-"
        gaps = (f"{_number(swap.longest_gap_ms)} ms", f"{_number(swap.median_gap_ms)} ms")
        table.add_row(f"{swap.at_s:.1f} s", swap.to, swap.outcome, took, str(swap.num_streams), *gaps)
    return table


def _remarks(summary: Summary) -> list[Text]:
    colour = {Verdict.FINE: "dim", Verdict.STRAINED: "yellow", Verdict.SATURATED: "bold red"}
    lines = [Text(f"Measured {summary.window.rule}.", style="dim")]
    if summary.slo.are_stated:
        lines.append(Text(f"Good: {summary.slo.words}.", style="dim"))
    lines.append(Text(summary.client.says, style=colour[summary.client.verdict]))
    return lines + [Text(note, style="yellow") for note in summary.notes]


def _number(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:,.0f}" if value >= 1000 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def json_line(summary: Summary) -> str:
    """The main figures as flat JSON on one line."""
    rates, latencies = summary.throughput, summary.latencies
    line: dict[str, Any] = {
        "benchmark": "serve",
        "label": summary.label,
        "server": summary.server_info.kind,
        "model": summary.server_info.model,
        "requests": summary.num_requests,
        "outcomes": summary.outcomes,
        "requests_per_s": rates.requests_per_s,
        "output_tokens_per_s": rates.output_tokens_per_s,
        "cached_share": summary.cached_share,
        "total_tokens_per_s": rates.total_tokens_per_s,
        "good_per_s": rates.good_per_s,
        "in_flight": rates.mean_in_flight,
    }
    for field, _ in MEASURES:
        found: Distribution | None = getattr(latencies, field)
        if found is not None:
            points = ("mean", "p50", "p90", "p95", "p99", "p999")
            line |= {f"{field}_{point}_ms": getattr(found, point) for point in points}
    if summary.exits is not None:
        line["mean_exit_layer"] = summary.exits.total.mean_layer
    whole = summary.integrity
    line |= {
        "swaps": len(summary.swaps),
        "lost": whole.lost,
        "duplicated": whole.duplicated,
        "mixed": whole.mixed,
    }
    line |= {"client": summary.client.verdict.value, "client_lag_p99_ms": summary.client.lag_p99_ms}
    return compact_json(line)


def compact_json(value: Any) -> str:
    """JSON on one line, numbers to four digits behind the point."""
    return msgspec.json.encode(rounded(value)).decode()


def rounded(value: Any) -> Any:
    match value:
        case float():
            return round(value, 4)
        case dict():
            return {name: rounded(item) for name, item in value.items()}
        case list() | tuple():
            return [rounded(item) for item in value]
    return value
