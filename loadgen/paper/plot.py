"""Plots the experiment as a PNG: a row for each load, with a panel of three bars for each measure.

Needs the extra `plots`.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec

from loadgen.paper import published
from loadgen.paper.outcome import Figures, Outcome
from loadgen.paper.systems import EARLY, FULL, HELIOS
from loadgen.paper.table import REPLAYED, Report

PAPER = "#b3261e"
COLOURS = {FULL: "#8a8f98", EARLY: "#d1640a", HELIOS: "#1764ab"}


class Panel(msgspec.Struct, frozen=True):
    """One measure. `paper_gain` is over the static early-exit model; `better` is the better direction."""

    title: str
    value: Callable[[Figures], float | None]
    paper_gain: float | None = None
    is_better_low: bool = False

    def paper_value(self, early: float | None) -> float | None:
        """HELIOS's value by the paper's gain."""
        if early is None or self.paper_gain is None:
            return None
        return early / self.paper_gain if self.is_better_low else early * self.paper_gain


PANELS = (
    Panel("output tokens/s", lambda figures: figures.tokens_per_s, published.THROUGHPUT_GAIN),
    Panel("mean response, ms", lambda figures: figures.response_ms, published.RESPONSE_TIME_GAIN, True),
    Panel("p95 response, ms", lambda figures: figures.response_p95_ms),
    Panel("largest batch that fits", lambda figures: figures.largest_batch, published.BATCH_GAIN),
    Panel(
        "memory for equal requests, MiB",
        lambda figures: figures.memory_bytes / 2**20,
        1 / (1 - published.MEMORY_SAVED),
        True,
    ),
)


def plot(path: Path, reports: Sequence[Report]) -> None:
    """Write the plot. Raises `ModuleNotFoundError` without matplotlib."""
    from matplotlib.figure import Figure

    loads = [(report, outcome) for report in reports for outcome in report.outcomes]
    figure = Figure((2.6 * len(PANELS), 2.8 * len(loads) + 0.4), dpi=200, layout="constrained")
    for row, (report, outcome) in zip(figure.subfigures(len(loads), squeeze=False).flat, loads, strict=True):
        row.suptitle(_title(report, outcome), x=0.01, ha="left", color=PAPER if report.is_replay else None)
        for axes, panel in zip(row.subplots(1, len(PANELS)), PANELS, strict=True):
            _draw(axes, panel, outcome)
    figure.legend(*_keys(), loc="outside lower left", ncols=len(COLOURS) + 1, frameon=False)
    figure.savefig(path)


def _title(report: Report, outcome: Outcome) -> str:
    load, memory = outcome.load, report.memory_bytes / 2**20
    said = f"{report.name}: {memory:,.0f} MiB each, {load.name} ({load.in_flight})"
    return f"{said}\n{REPLAYED}" if report.is_replay else said


def _draw(axes: Any, panel: Panel, outcome: Outcome) -> None:
    values = {name: panel.value(figures) for name, figures in outcome.systems.items()}
    heights = [value or 0.0 for value in values.values()]
    bars = axes.bar(range(len(values)), heights, color=[COLOURS[name] for name in values])
    axes.bar_label(bars, [_shown(value) for value in values.values()], fontsize="small")
    paper = panel.paper_value(values[EARLY])
    if paper is not None:
        axes.axhline(paper, color=PAPER, linestyle="--", linewidth=1)
    axes.set_title(panel.title, fontsize="small", loc="left")
    axes.set(xticks=[], yticks=[])
    axes.margins(y=0.2)
    axes.spines[["left", "top", "right"]].set_visible(False)


def _shown(value: float | None) -> str:
    return "-" if value is None else f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _keys() -> tuple[list[Any], list[str]]:
    """Handles and labels of the legend."""
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    bars = [Patch(color=colour) for colour in COLOURS.values()]
    line = Line2D([], [], color=PAPER, linestyle="--")
    return [*bars, line], [*COLOURS, "HELIOS, had it the paper's gain over static early exit"]
