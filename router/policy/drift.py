"""Has what clients send shifted? Two tests on requests as they are answered, that call for a look early.

A false alarm costs a reassessment, which decides on what was measured and so changes nothing without reason.
"""

import math
from collections import Counter

_NUM_BASELINE = 40  # requests, from which it is learned what is usual
_SLACK = 0.5  # standard deviations that count as noise
_LEAST_SPREAD = 0.02
_MIX_MEMORY = 30.0  # requests after which a change in the mix has mostly arrived
_MIX_SHIFT = 0.25  # of the requests are of another kind than before


class Cusum:
    """Two-sided cumulative sum (Page 1954) of how far a value lies from its own baseline."""

    def __init__(self, limit: float):
        self._limit = limit  # standard deviations
        self.clear()

    def clear(self) -> None:
        """Learn anew what is usual."""
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
        """Mean and squared deviations so far (Welford 1962)."""
        self._count += 1
        before = value - self._mean
        self._mean += before / self._count
        self._squares += before * (value - self._mean)


class Mix:
    """Shares of requests by what they are about, the latest counting most, and as they were before."""

    def __init__(self) -> None:
        self._weights: dict[str, float] = {}
        self._before: dict[str, float] = {}
        self._looked_at: dict[str, float] = {}
        self._since: Counter[str] = Counter()

    def add(self, name: str) -> None:
        keep = 1 - 1 / _MIX_MEMORY
        for known in self._weights:
            self._weights[known] *= keep
        self._weights[name] = self._weights.get(name, 0.0) + 1
        self._since[name] += 1

    @property
    def shares(self) -> dict[str, float]:
        """They add up to one; too rare ones are left out."""
        total = sum(self._weights.values())
        shares = {name: weight / total for name, weight in self._weights.items() if weight / total >= 0.01}
        whole = sum(shares.values())
        return {name: share / whole for name, share in sorted(shares.items())}

    @property
    def steady(self) -> dict[str, float]:
        """Shares of all requests since what was remembered last; {}: they are too few, or have shifted."""
        total = self._since.total()
        if total < 3 * _MIX_MEMORY or self.has_shifted:
            return {}
        return {name: count / total for name, count in sorted(self._since.items())}

    @property
    def has_shifted(self) -> bool:
        """Against what was remembered last."""
        if not self._before or self._since.total() < _MIX_MEMORY / 3:
            return False
        return _distance(self._before, self.shares) > _MIX_SHIFT

    def look(self) -> None:
        """A decision is made on what it is now; carrying that out may take long."""
        self._looked_at = self.shares

    def remember(self) -> None:
        """From now on, a shift is one against what it was at the last look."""
        self._before = self._looked_at
        self._since.clear()


def _distance(mix: dict[str, float], other: dict[str, float]) -> float:
    """Share of the requests that would have to be of another kind (total variation)."""
    return sum(abs(mix.get(name, 0.0) - other.get(name, 0.0)) for name in mix.keys() | other.keys()) / 2
