"""Time series of windows: records merged by sums into steps of equal length. Pure."""

from collections.abc import Callable, Hashable, Iterable
from typing import TypeVar

from telemetry.rollup import CandidateSum
from telemetry.window import Record, Window

Key = TypeVar("Key", bound=Hashable)
Measured = TypeVar("Measured", Record, CandidateSum)
Steps = dict[int, Window]  # by the step's start, Unix time in seconds


def series_by(
    records: Iterable[Measured], step_s: int, key_of: Callable[[Measured], Key]
) -> dict[Key, Steps]:
    """A series for each key. A window counts in the step in which it began; empty steps are left out."""
    found: dict[Key, Steps] = {}
    for record in records:
        start = int(record.window.start // step_s) * step_s
        steps = found.setdefault(key_of(record), {})
        steps.setdefault(start, Window()).merge(record.window)
    return found


def keep_largest(series: dict[Key, Steps], most: int) -> tuple[dict[Key, Steps], Steps]:
    """The `most` series with the most tokens, in their order, and the sum of the others."""
    by_tokens = sorted(series, key=lambda key: sum(window.tokens for window in series[key].values()))
    small = set(by_tokens[: max(0, len(series) - most)])
    others: Steps = {}
    for key in small:
        for start, window in series[key].items():
            others.setdefault(start, Window()).merge(window)
    return {key: steps for key, steps in series.items() if key not in small}, others
