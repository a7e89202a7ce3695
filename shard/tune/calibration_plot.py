"""A PNG of agreement and coverage against threshold, one panel for each exit."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from shard.tune.path import Survey, Thresholds, Votes

WIDTH, HEIGHT = 460, 330  # of a panel
LEFT, RIGHT, TOP, BOTTOM = 52, 16, 56, 48  # around its frame
COLUMNS = 3
SCALE = 2  # drawn so much larger: fine lines on any screen
INK, PALE, AGREEMENT, COVERAGE, CHOSEN = "#222222", "#dddddd", "#1764ab", "#d1640a", "#555555"
LEAST_TOKENS = 20  # an agreement of fewer says nothing


class Panel:
    """One exit's frame: x is a threshold, y a share, both in [0, 1]."""

    def __init__(self, draw: ImageDraw.ImageDraw, column: int, row: int):
        self._draw = draw
        self._left, self._top = column * WIDTH + LEFT, row * HEIGHT + TOP
        self._width, self._height = WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM

    def frame(self, title: str, x_label: str) -> None:
        """Grid, numbers and words."""
        for i in range(6):
            share = i / 5
            self._line([(share, 0), (share, 1)], PALE, 1)
            self._line([(0, share), (1, share)], PALE, 1)
            self._text(share, -0.03, f"{share:.1f}", "mt")
            self._text(-0.02, share, f"{share:.0%}", "rm")
        self._line([(0, 0), (1, 0), (1, 1), (0, 1), (0, 0)], INK, 1)
        self._text(0.5, -0.11, x_label, "mt")
        self._text(0, 1.16, title, "lm", 15)
        self._text(0, 1.06, "agreement", "lm", colour=AGREEMENT)
        self._text(0.27, 1.06, "coverage", "lm", colour=COVERAGE)

    def curve(self, points: list[tuple[float, float]], colour: str) -> None:
        self._line(points, colour, 2)

    def mark(self, threshold: float, words: str) -> None:
        """A vertical line."""
        self._line([(threshold, 0), (threshold, 1)], CHOSEN, 1)
        self._text(1, 1.06, words, "rm", colour=CHOSEN)

    def _at(self, x: float, y: float) -> tuple[float, float]:
        return SCALE * (self._left + x * self._width), SCALE * (self._top + (1 - y) * self._height)

    def _line(self, points: list[tuple[float, float]], colour: str, width: int) -> None:
        self._draw.line([self._at(x, y) for x, y in points], colour, width * SCALE, joint="curve")

    def _text(self, x: float, y: float, words: str, anchor: str, size: int = 12, colour: str = INK) -> None:
        font = ImageFont.load_default(size * SCALE)
        self._draw.text(self._at(x, y), words, colour, font, anchor)


def plot(path: Path, survey: Survey, criterion: str, thresholds: Thresholds) -> None:
    """Every exit's own curves on the survey, whoever left before, and the threshold found for it."""
    num = len(survey.votes)
    size = (min(num, COLUMNS) * WIDTH * SCALE, -(-num // COLUMNS) * HEIGHT * SCALE)
    image = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(image)
    for i, votes in enumerate(survey.votes):
        panel = Panel(draw, i % COLUMNS, i // COLUMNS)
        panel.frame(f"Exit at layer {votes.layer} of {survey.num_layers}", f"threshold ({criterion})")
        panel.curve(_points(votes, lambda sure: float(sure.mean()), 0), COVERAGE)
        panel.curve(_points(votes, _agreement(votes), LEAST_TOKENS), AGREEMENT)
        threshold = thresholds[votes.layer]
        panel.mark(threshold, f"leaves at {threshold:.3f}" if threshold < 1 else "never leaves")
    image.save(path)


def _points(votes: Votes, value: Callable[[np.ndarray], float], least: int) -> list[tuple[float, float]]:
    """A value of the tokens that reach each threshold, where they are at least so many."""
    return [
        (threshold, value(sure))
        for threshold in np.linspace(0, 0.999, 200).tolist()
        if (sure := votes.reached(threshold)).sum() >= least
    ]


def _agreement(votes: Votes) -> Callable[[np.ndarray], float]:
    return lambda sure: float(votes.agrees[sure].mean())
