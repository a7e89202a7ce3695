"""The experiment as a PNG: a row for each load, in it a panel of three bars for each measure."""

from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec
from PIL import Image, ImageDraw, ImageFont

from loadgen.paper import published
from loadgen.paper.outcome import Figures, Outcome
from loadgen.paper.systems import EARLY, FULL, HELIOS
from loadgen.paper.table import REPLAYED, Report

WIDTH, HEIGHT, HEAD, FOOT = 250, 230, 46, 40  # of a panel, of a row's title, of the legend
TOP, BOTTOM = 30, 28  # in a panel, above and below its bars
SCALE = 2  # drawn so much larger: fine lines on any screen
INK, PALE, PAPER = "#222222", "#dddddd", "#b3261e"
COLOURS = {FULL: "#8a8f98", EARLY: "#d1640a", HELIOS: "#1764ab"}


class Panel(msgspec.Struct, frozen=True):
    """One measure. `paper_gain` is over the static early-exit model; `better` tells which way it goes."""

    title: str
    value: Callable[[Figures], float | None]
    paper_gain: float | None = None
    is_better_low: bool = False

    def paper_value(self, early: float | None) -> float | None:
        """Where the paper's gain would have HELIOS."""
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


class Canvas:
    """Draws in units of one pixel at scale 1."""

    def __init__(self, width: int, height: int):
        self.image = Image.new("RGB", (width * SCALE, height * SCALE), "white")
        self._draw = ImageDraw.Draw(self.image)

    def bar(self, box: tuple[float, float, float, float], colour: str) -> None:
        self._draw.rectangle([value * SCALE for value in box], fill=colour)

    def line(self, x: tuple[float, float], y: float, colour: str, is_dashed: bool = False) -> None:
        left, right = x
        step = 6 if is_dashed else right - left
        while left < right:
            end = min(right, left + (step / 2 if is_dashed else step))
            self._draw.line([(left * SCALE, y * SCALE), (end * SCALE, y * SCALE)], colour, SCALE)
            left += step

    def text(
        self, at: tuple[float, float], words: str, anchor: str, size: int = 11, colour: str = INK
    ) -> None:
        font = ImageFont.load_default(size * SCALE)
        self._draw.text((at[0] * SCALE, at[1] * SCALE), words, colour, font, anchor)


def plot(path: Path, reports: Sequence[Report]) -> None:
    """Write it."""
    loads = [(report, outcome) for report in reports for outcome in report.outcomes]
    row_height = HEAD + HEIGHT
    canvas = Canvas(len(PANELS) * WIDTH, len(loads) * row_height + FOOT)
    for number, (report, outcome) in enumerate(loads):
        top = number * row_height
        canvas.text((14, top + 14), _title(report, outcome), "lt", 15)
        if report.is_replay:
            canvas.text((14, top + 34), REPLAYED, "lt", 11, PAPER)
        for column, panel in enumerate(PANELS):
            _draw_panel(canvas, (column * WIDTH, top + HEAD), panel, outcome)
    _draw_legend(canvas, len(loads) * row_height + FOOT / 2)
    canvas.image.save(path)


def _title(report: Report, outcome: Outcome) -> str:
    load, memory = outcome.load, report.memory_bytes / 2**20
    return f"{report.name}: {memory:,.0f} MiB each, {load.name} ({load.in_flight})"


def _draw_panel(canvas: Canvas, at: tuple[float, float], panel: Panel, outcome: Outcome) -> None:
    left, top = at
    values = {name: panel.value(figures) for name, figures in outcome.systems.items()}
    paper = panel.paper_value(values[EARLY])
    greatest = max([value for value in (*values.values(), paper) if value is not None], default=1.0) or 1.0
    floor, height = top + HEIGHT - BOTTOM, HEIGHT - TOP - BOTTOM - 14

    def y(value: float) -> float:
        return floor - height * value / greatest

    canvas.text((left + 14, top + 12), panel.title, "lt", 12)
    for index, (name, value) in enumerate(values.items()):
        x = left + 24 + index * 70
        if value is not None:
            canvas.bar((x, y(value), x + 52, floor), COLOURS[name])
        shown = "-" if value is None else f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
        canvas.text((x + 26, (floor if value is None else y(value)) - 3), shown, "mb")
    canvas.line((left + 14, left + WIDTH - 14), floor, INK)
    if paper is not None:
        canvas.line((left + 14, left + WIDTH - 14), y(paper), PAPER, is_dashed=True)


def _draw_legend(canvas: Canvas, y: float) -> None:
    x = 24.0
    for name, colour in COLOURS.items():
        canvas.bar((x, y - 6, x + 12, y + 6), colour)
        canvas.text((x + 18, y), name, "lm", 12)
        x += 170
    canvas.line((x, x + 24), y, PAPER, is_dashed=True)
    canvas.text((x + 30, y), "HELIOS, had it the paper's gain over static early exit", "lm", 12)
