"""The comparison as a table, and as one line of JSON."""

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
from rich.console import Console
from rich.table import Table

from loadgen.commands.compare import interval_of, plain_ratio, values_of
from loadgen.peers.duel import Duel, Outcome
from loadgen.peers.machine import Machine

WIDTH = 110  # least columns of the table


class Report(msgspec.Struct, frozen=True):
    """All that was found. `failed`: the reason by peer, for those that could not be compared."""

    helios: str
    machine: Machine
    settings: dict[str, Any]
    duels: list[Duel]
    failed: dict[str, str]


def show(report: Report, console: Console) -> None:
    machine = report.machine
    imitated = f", which Helios takes for {machine.imitates}" if machine.imitates else ""
    console.print(
        f"{machine.cpu}, {machine.num_cores} cores{imitated}: {machine.flags}", style="dim", markup=False
    )
    for duel in report.duels:
        console.print(_table(duel, report.helios), width=max(console.width, WIDTH), crop=False)
        for name, command in duel.commands.items():
            console.print(f"{name}: {command}", style="dim", markup=False)
        for note in duel.notes:
            console.print(note, style="yellow", markup=False)
    if machine.is_busy:
        console.print(
            f"{machine.load:.1f} processes were running before the benchmark began: ratios hold at best, "
            "rates do not.",
            style="yellow",
        )
    for name, reason in report.failed.items():
        console.print(f"{name} was not compared: {reason}", style="red", markup=False)


def _table(duel: Duel, helios: str) -> Table:
    title = f"Helios {helios} against {duel.peer} ({duel.version}), {duel.weights}"
    table = Table(title=title, title_justify="left", box=None, header_style="dim", padding=(0, 1))
    for name in ("", "", duel.peer, "Helios", "ratio", "95% interval"):
        table.add_column(name, justify="right" if name else "left", no_wrap=True)
    for outcome in duel.outcomes:
        shown = [ratio for ratio in outcome.ratios if ratio.measure in outcome.shown]
        for position, ratio in enumerate(shown):
            name = "" if position else outcome.load
            estimate = f"[bold]{ratio.ratio.estimate:.2f}[/]"
            table.add_row(name, ratio.measure, *values_of(ratio), estimate, interval_of(ratio))
    return table


def line_of(report: Report) -> dict[str, Any]:
    """The line of JSON: `a` is the peer, `b` is Helios."""
    return {
        "benchmark": "peers",
        "helios": report.helios,
        "machine": msgspec.to_builtins(report.machine),
        "settings": report.settings,
        "peers": {duel.peer: _plain(duel) for duel in report.duels},
        "failed": report.failed,
    }


def _plain(duel: Duel) -> Mapping[str, Any]:
    fields = ("version", "weights", "commands", "idle_cores", "notes")
    return {
        **{name: getattr(duel, name) for name in fields},
        "loads": {outcome.load: _plain_outcome(outcome) for outcome in duel.outcomes},
        "failures": sum(outcome.failed for outcome in duel.outcomes),
    }


def _plain_outcome(outcome: Outcome) -> dict[str, Any]:
    return {ratio.measure: plain_ratio(ratio) for ratio in outcome.ratios}


def rounds_of(duels: Sequence[Duel]) -> dict[str, Any]:
    """Every round's output tokens/s and TTFT, the peer's and Helios', for the file."""
    return {
        duel.peer: {
            outcome.load: [_round(pair) for pair in zip(*outcome.rounds, strict=True)]
            for outcome in duel.outcomes
        }
        for duel in duels
    }


def _round(pair: Sequence[Any]) -> list[dict[str, Any]]:
    return [
        {
            "label": summary.label,
            "output_tokens_per_s": summary.throughput.output_tokens_per_s,
            "latencies": msgspec.to_builtins(summary.latencies),
            "outcomes": summary.outcomes,
            "client": msgspec.to_builtins(summary.client),
        }
        for summary in pair
    ]
