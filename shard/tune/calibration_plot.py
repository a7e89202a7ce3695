"""A PNG of agreement and coverage against threshold, one panel for each exit. Needs the extra `plots`."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from shard.tune.path import Survey, Thresholds, Votes

COLUMNS = 3
AGREEMENT, COVERAGE, CHOSEN = "#1764ab", "#d1640a", "#555555"
LEAST_TOKENS = 20  # fewer give no meaningful agreement


def plot(path: Path, survey: Survey, criterion: str, thresholds: Thresholds) -> None:
    """Plot every exit's curves on all tokens of the survey, and the threshold found for it.

    Raises `ModuleNotFoundError` without matplotlib.
    """
    from matplotlib.figure import Figure

    num = len(survey.votes)
    columns, rows = min(num, COLUMNS), -(-num // COLUMNS)
    figure = Figure((4.6 * columns, 3.3 * rows), dpi=200, layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False).ravel()
    for panel, votes in zip(panels, survey.votes, strict=False):
        panel.set_title(f"Exit at layer {votes.layer} of {survey.num_layers}", loc="left")
        _draw(panel, votes, thresholds[votes.layer])
        panel.set(xlabel=f"threshold ({criterion})", xlim=(0, 1), ylim=(0, 1))
    for panel in panels[num:]:
        panel.set_axis_off()
    figure.savefig(path)


def _draw(panel: Any, votes: Votes, threshold: float) -> None:
    panel.plot(*_points(votes, lambda sure: float(sure.mean()), 0), color=COVERAGE, label="coverage")
    panel.plot(*_points(votes, _agreement(votes), LEAST_TOKENS), color=AGREEMENT, label="agreement")
    words = f"leaves at {threshold:.3f}" if threshold < 1 else "never leaves"
    panel.axvline(threshold, color=CHOSEN, linewidth=1, label=words)
    panel.yaxis.set_major_formatter("{x:.0%}")
    panel.grid(color="#dddddd")
    panel.legend(fontsize="small", loc="lower left")


def _points(
    votes: Votes, value: Callable[[np.ndarray], float], least: int
) -> tuple[list[float], list[float]]:
    """Thresholds that at least `LEAST_TOKENS` tokens reach, and a value of those tokens."""
    reached = [(threshold, votes.reached(threshold)) for threshold in np.linspace(0, 0.999, 200).tolist()]
    kept = [(threshold, value(sure)) for threshold, sure in reached if sure.sum() >= least]
    return [threshold for threshold, _ in kept], [share for _, share in kept]


def _agreement(votes: Votes) -> Callable[[np.ndarray], float]:
    return lambda sure: float(votes.agrees[sure].mean())
