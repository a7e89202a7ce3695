"""Reports the experiment as tables beside the paper's figures, and as one line of JSON."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import msgspec
from rich.console import Console
from rich.table import Table

from loadgen.paper import published
from loadgen.paper.agreement import Quality
from loadgen.paper.experiment import Part
from loadgen.paper.outcome import Figures, Gain, Outcome
from loadgen.paper.systems import EARLY, FULL, HELIOS
from loadgen.results.stats import Interval

REPLAYED = "Exits are replayed on random weights: honest speed, no model's answers."
MIB = 2**20
WIDTH = 124  # width of a table in characters


class Report(msgspec.Struct, frozen=True):
    """The report of one part."""

    name: str
    is_replay: bool
    memory_bytes: int
    static_batch: int  # requests that fit in the static systems' memory
    outcomes: list[Outcome]
    quality: dict[str, Quality]  # by system; empty under replay, whose text means nothing
    diary: list[str]  # HELIOS's changes with reasons


def report_of(part: Part, outcomes: list[Outcome], quality: dict[str, Quality]) -> Report:
    """The report of a part."""
    subject, memory = part.subject, part.budget.memory_bytes
    batch = part.loads[0].in_flight
    return Report(subject.name, subject.is_replay, memory, batch, outcomes, quality, _diary(part))


def _diary(part: Part) -> list[str]:
    """Decisions of the last round under each load, with reasons."""
    return [
        f"{load.name}, {run.from_epoch(decision.at_s):.1f} s: "
        f"{decision.kind} {decision.chosen}, {decision.outcome}. {decision.why}"
        for load in part.loads
        for run, _ in part.runs_of(HELIOS, load)[-1:]
        for decision in run.decisions
    ]


def show(reports: Sequence[Report], console: Console) -> None:
    """Print the tables."""
    wide = Console(file=console.file, width=max(console.width, WIDTH))
    for report in reports:
        for outcome in report.outcomes:
            wide.print(_table(report, outcome))
            for line in _lines(outcome):
                console.print(line, style="dim", highlight=False, soft_wrap=True)
            console.print()
        for line in report.diary:
            console.print(f"  {line}", style="dim", markup=False, highlight=False, soft_wrap=True)
        if report.is_replay:
            console.print(f"[yellow]{REPLAYED}[/] Agreement and perplexity would mean nothing here.")


def _table(report: Report, outcome: Outcome) -> Table:
    load, memory = outcome.load, report.memory_bytes / MIB
    title = f"{report.name}: {memory:,.0f} MiB each, {load.name} ({load.in_flight})"
    table = Table(
        title=title, title_justify="left", title_style="bold", box=None, header_style="dim", padding=(0, 1)
    )
    table.add_column("", no_wrap=True)
    for name in (FULL, EARLY, HELIOS, "over full", "over early exit", "paper"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in rows(report, outcome):
        table.add_row(*row)
    return table


def rows(report: Report, outcome: Outcome) -> list[tuple[str, ...]]:
    """Rows: name, the three systems, gains over the other two, the paper's gain over static early exit."""
    paper = published
    figures = [outcome.systems[name] for name in (FULL, EARLY, HELIOS)]
    gains = [outcome.gains[name] for name in (FULL, EARLY)]

    def row(name: str, shown: Iterable[str], over: Iterable[str], paper_says: str = "") -> tuple[str, ...]:
        return (name, *shown, *over, paper_says)

    found = [
        row(
            "output tokens/s",
            (_number(own.tokens_per_s) for own in figures),
            _both(gains, lambda gain: gain.throughput),
            f"{paper.THROUGHPUT_GAIN}x",
        ),
        row(
            "mean response, ms",
            (_number(own.response_ms) for own in figures),
            _both(gains, lambda gain: gain.response),
            f"{paper.RESPONSE_TIME_GAIN}x",
        ),
        row(
            "p95 response, ms",
            (_number(own.response_p95_ms) for own in figures),
            _both(gains, lambda gain: gain.response_p95),
        ),
        row(
            "joules per token",
            (_number(own.joules_per_token) for own in figures),
            _both(gains, lambda gain: gain.energy),
            f"{paper.ENERGY_GAIN}x",
        ),
        row(
            "largest batch that fits",
            (str(own.largest_batch) for own in figures),
            (f"{gain.batch:.2f}x" for gain in gains),
            f"{paper.BATCH_GAIN}x",
        ),
        row("most running", (_number(own.most_running) for own in figures), ("", "")),
        row(
            f"memory for {report.static_batch} requests, MiB",
            (_number(own.memory_bytes / MIB) for own in figures),
            (f"{-gain.memory_saved:+.0%}" for gain in gains),
            f"{-paper.MEMORY_SAVED:+.1%}",
        ),
        row(
            "share of the first exit",
            (_share(own.first_exit_share) for own in figures),
            ("", ""),
            f"{paper.FIRST_EXIT_SHARE:.0%}",
        ),
        row("swaps", (str(own.swaps) for own in figures), ("", ""), f"{paper.SWAPS} in {paper.REQUESTS}"),
        row("candidates tried", (str(own.trials) for own in figures), ("", "")),
    ]
    return found + _quality_rows(report.quality)


def _quality_rows(quality: Mapping[str, Quality]) -> list[tuple[str, ...]]:
    if not quality:
        return []
    known = [quality.get(name) for name in (FULL, EARLY, HELIOS)]
    agreement = ["-" if judged is None else f"{judged.agreement:.3f}" for judged in known]
    low = ["-" if judged is None else f"{judged.low:.3f} - {judged.high:.3f}" for judged in known]
    perplexity = ["-" if judged is None else f"{judged.perplexity:.3f}" for judged in known]
    rise = f"+{published.PERPLEXITY_RISE}"
    return [
        ("agreement with full depth", *agreement, "", "", ""),
        ("its 95% interval", *low, "", "", ""),
        ("perplexity under full depth", *perplexity, "", "", rise),
    ]


def _number(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.0%}"


def _both(gains: Sequence[Gain], part: Callable[[Gain], Interval | None]) -> tuple[str, str]:
    """Gains over full depth, and over early exit with its interval."""
    full, early = (part(gain) for gain in gains)
    if early is None or early.low is None or early.high is None:
        return _times(full), _times(early)
    return _times(full), f"{_times(early)} ({early.low:.2f} - {early.high:.2f})"


def _times(gain: Interval | None) -> str:
    return "-" if gain is None else f"{gain.estimate:.2f}x"


def _lines(outcome: Outcome) -> list[str]:
    return [f"  tokens of {name} by layer: {_layers(figures)}" for name, figures in outcome.systems.items()]


def _layers(figures: Figures) -> str:
    return ", ".join(f"{share:.0%} at {layer}" for layer, share in figures.share_by_layer.items()) or "-"


def line_of(reports: Sequence[Report]) -> dict[str, Any]:
    """The reports as JSON values."""
    paper = {
        name.lower(): value
        for name, value in vars(published).items()
        if name.isupper() and isinstance(value, int | float)
    }
    parts = msgspec.to_builtins(list(reports), str_keys=True)
    return {"benchmark": "helios", "parts": parts, "paper": paper}
