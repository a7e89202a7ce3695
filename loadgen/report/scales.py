"""Scales: map values to positions in a drawing, with ticks at round numbers."""

import math
from collections.abc import Sequence

import msgspec


class Scale(msgspec.Struct, frozen=True):
    """Maps [low, high] to [start, end] of the drawing; a logarithmic one needs low > 0."""

    low: float
    high: float
    start: float
    end: float
    is_log: bool = False

    def at(self, value: float) -> float:
        low, high = self._shown(self.low), self._shown(self.high)
        value = self._shown(min(max(value, self.low), self.high))
        return self.start + (value - low) / ((high - low) or 1.0) * (self.end - self.start)

    def _shown(self, value: float) -> float:
        return math.log10(value) if self.is_log else value

    @property
    def ticks(self) -> list[float]:
        return _log_ticks(self.low, self.high) if self.is_log else _linear_ticks(self.low, self.high)


def linear(values: Sequence[float], start: float, end: float, from_zero: bool = True) -> Scale:
    low, high = min(values, default=0.0), max(values, default=1.0)
    low = min(0.0, low) if from_zero else low
    step = _step(low, high)
    top = math.ceil(high / step - 1e-9) * step if high > low else low + 1.0
    return Scale(low, top, start, end)


def logarithmic(values: Sequence[float], start: float, end: float) -> Scale:
    positive = [value for value in values if value > 0]
    low, high = min(positive, default=1.0), max(positive, default=10.0)
    return Scale(low * 0.9, max(high, low * 1.5) * 1.1, start, end, is_log=True)


def _step(low: float, high: float) -> float:
    """A step of 1, 2 or 5 times a power of ten that cuts the range in about five."""
    rough = (high - low) / 5 or 1.0
    power = 10.0 ** math.floor(math.log10(rough))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * 0.999)


def _linear_ticks(low: float, high: float) -> list[float]:
    step = _step(low, high)
    first = math.ceil(low / step - 1e-9)
    return [index * step for index in range(first, math.floor(high / step + 1e-9) + 1)]


def _log_ticks(low: float, high: float) -> list[float]:
    """Ticks at 1, 2, 5 of each decade, or at decades only if they are many."""
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    factors = (1, 2, 5) if len(decades) < 5 else (1,)
    ticks = [factor * 10.0**decade for decade in decades for factor in factors]
    return [tick for tick in ticks if low <= tick <= high]


def short(value: float) -> str:
    """A number as an axis shows it: 0.5, 20, 1.5k, 2M."""
    for limit, unit in ((1e6, "M"), (1e3, "k")):
        if abs(value) >= limit:
            return f"{value / limit:.3g}{unit}"
    return f"{value:.3g}"
