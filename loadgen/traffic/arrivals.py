"""Arrival times of requests: seconds since the start of a run, pure functions of a seed.

A rate profile is a sequence of pieces with linearly changing rates. Arrivals of any spacing are drawn at rate
one and mapped through the profile's inverse integral, so that ramps and steps work for constant, Poisson and
gamma spacing alike.
"""

import math
from collections.abc import Iterator

import msgspec
import numpy as np

from loadgen.cli.units import BadQuantity, number, seconds

Times = np.ndarray[tuple[int], np.dtype[np.float64]]


class Piece(msgspec.Struct, frozen=True):
    """A period over which the rate changes linearly. Rates are in requests per second."""

    duration_s: float
    first_rate: float
    last_rate: float

    @property
    def num_arrivals(self) -> float:
        return self.duration_s * (self.first_rate + self.last_rate) / 2

    def time_of(self, count: float) -> float:
        """Time at which the expected number of arrivals since this piece's start reaches `count`."""
        slope = (
            (self.last_rate - self.first_rate) / self.duration_s if math.isfinite(self.duration_s) else 0.0
        )
        if slope == 0:
            return count / self.first_rate
        # The root of slope/2 t^2 + first t - count = 0, in the form that does not cancel for small slopes.
        return 2 * count / (self.first_rate + math.sqrt(max(0.0, self.first_rate**2 + 2 * slope * count)))


class Spacing(msgspec.Struct, frozen=True):
    """Regularity of arrivals: gamma-distributed gaps of mean 1. Shape 1: Poisson; infinite: constant."""

    shape: float = 1.0

    @classmethod
    def parse(cls, text: str) -> "Spacing":
        """`constant`, `poisson` or `gamma:SHAPE` (below 1: burstier than Poisson). Raises `BadQuantity`."""
        kind, _, shape = text.partition(":")
        match kind:
            case "constant":
                return cls(math.inf)
            case "poisson":
                return cls(1.0)
            case "gamma":
                return cls(number(shape, "shape of gamma"))
        raise BadQuantity(f"{text!r} is not a spacing: constant, poisson or gamma:SHAPE")

    def gaps(self, rng: np.random.Generator) -> Iterator[float]:
        if math.isinf(self.shape):
            # The first arrival is at 0.
            yield 0.0
            while True:
                yield 1.0
        while True:
            yield float(rng.gamma(self.shape, 1.0 / self.shape))


def parse_rate(text: str, duration_s: float) -> tuple[Piece, ...]:
    """`4`; `2..20` rises evenly over the run; `2,4,8` in equal steps. Raises `BadQuantity`."""
    if ".." in text:
        first, last = (number(part, "rate") for part in text.split("..", 1))
        return _finite((Piece(duration_s, first, last),), text)
    rates = [number(part, "rate") for part in text.split(",")]
    if len(rates) == 1:
        return (Piece(duration_s, rates[0], rates[0]),)
    return _finite(tuple(Piece(duration_s / len(rates), rate, rate) for rate in rates), text)


def _finite(pieces: tuple[Piece, ...], text: str) -> tuple[Piece, ...]:
    if not all(math.isfinite(piece.duration_s) for piece in pieces):
        raise BadQuantity(f"a rate of {text} needs --duration")
    return pieces


def arrival_times(pieces: tuple[Piece, ...], spacing: Spacing, seed: int) -> Iterator[float]:
    """Rising arrival times, until the last piece ends (never, if it is infinite)."""
    start_s, start_count = 0.0, 0.0
    remaining = list(pieces)
    count = 0.0
    for gap in spacing.gaps(np.random.default_rng(seed)):
        count += gap
        while remaining and count - start_count >= remaining[0].num_arrivals:
            done = remaining.pop(0)
            start_s, start_count = start_s + done.duration_s, start_count + done.num_arrivals
        if not remaining:
            return
        yield start_s + remaining[0].time_of(count - start_count)


class Bursts(msgspec.Struct, frozen=True):
    """A number of requests at once, at a fixed interval in seconds."""

    size: int
    period_s: float

    @classmethod
    def parse(cls, text: str) -> "Bursts":
        """`32/10s`. Raises `BadQuantity`."""
        size, slash, period = text.partition("/")
        if not slash or not size.strip().isdigit() or int(size) < 1:
            raise BadQuantity(f"{text!r} is not bursts like 32/10s (32 requests every 10 seconds)")
        return cls(int(size), number(str(seconds(period)), "period of bursts"))

    def times(self, duration_s: float) -> Iterator[float]:
        at = 0.0
        while at < duration_s:
            yield from [at] * self.size
            at += self.period_s
