"""Detects drift of the traffic by two tests on answered requests, which trigger an early reassessment.

A false alarm costs one reassessment, which still changes nothing without reason.
"""

import math
from collections import Counter

_NUM_BASELINE = 40  # requests from which the baseline is learned
_SLACK = 0.5  # standard deviations that count as noise
_LEAST_SPREAD = 0.02
_MIX_MEMORY = 30.0  # requests over which shares are averaged (exponentially)
_MIX_SHIFT = 0.25  # share of requests that changed class, from which on the mix has shifted


class Cusum:
    """Two-sided cumulative sum (Page 1954) of a value's deviations from its own baseline."""

    def __init__(self, limit: float):
        self._limit = limit  # standard deviations
        self.clear()

    def clear(self) -> None:
        """Learn a new baseline."""
        self._count = 0
        self._mean = self._squares = self._up = self._down = 0.0

    def add(self, value: float) -> None:
        if self._count < _NUM_BASELINE:
            self._learn(value)
            return
        spread = max(_LEAST_SPREAD, math.sqrt(self._squares / (_NUM_BASELINE - 1)))
        surprise = (value - self._mean) / spread
        self._up = max(0.0, self._up + surprise - _SLACK)
        self._down = max(0.0, self._down - surprise - _SLACK)

    @property
    def has_shifted(self) -> bool:
        return max(self._up, self._down) > self._limit

    def _learn(self, value: float) -> None:
        """Update mean and squared deviations (Welford 1962)."""
        self._count += 1
        before = value - self._mean
        self._mean += before / self._count
        self._squares += before * (value - self._mean)


class Mix:
    """Shares of classes of prompts, exponentially averaged, and the remembered earlier shares."""

    def __init__(self) -> None:
        self._weights: dict[str, float] = {}
        self._before: dict[str, float] = {}
        self._marked: dict[str, float] = {}
        self._since: Counter[str] = Counter()

    def add(self, name: str) -> None:
        keep = 1 - 1 / _MIX_MEMORY
        for known in self._weights:
            self._weights[known] *= keep
        self._weights[name] = self._weights.get(name, 0.0) + 1
        self._since[name] += 1

    @property
    def shares(self) -> dict[str, float]:
        """Current shares, which add up to one; rare classes are left out."""
        total = sum(self._weights.values())
        shares = {name: weight / total for name, weight in self._weights.items() if weight / total >= 0.01}
        whole = sum(shares.values())
        return {name: share / whole for name, share in sorted(shares.items())}

    @property
    def steady(self) -> dict[str, float]:
        """Shares of all requests since the last `remember`; {} if they are too few or have shifted."""
        total = self._since.total()
        if total < 3 * _MIX_MEMORY or self.has_shifted:
            return {}
        return {name: count / total for name, count in sorted(self._since.items())}

    @property
    def has_shifted(self) -> bool:
        """True if the shares have shifted since the last `remember`."""
        if not self._before or self._since.total() < _MIX_MEMORY / 3:
            return False
        return _distance(self._before, self.shares) > _MIX_SHIFT

    def mark(self) -> None:
        """Note the current shares, on which a decision is being made; carrying it out may take long."""
        self._marked = self.shares

    def remember(self) -> None:
        """Measure shifts from the shares at the last `mark`."""
        self._before = self._marked
        self._since.clear()


def _distance(mix: dict[str, float], other: dict[str, float]) -> float:
    """Total variation distance: the share of requests that would have to change class."""
    return sum(abs(mix.get(name, 0.0) - other.get(name, 0.0)) for name in mix.keys() | other.keys()) / 2
