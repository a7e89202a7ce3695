"""Statistics of samples: percentiles, paired ratios with intervals. Pure, on numpy arrays."""

import enum
import math
from collections.abc import Sequence

import msgspec
import numpy as np
import numpy.typing as npt
from scipy import special

Samples = Sequence[float] | npt.NDArray[np.float64]


class Confidence(enum.Enum):
    """A confidence level."""

    P95 = 0.95
    P99 = 0.99

    def t(self, degrees: int) -> float:
        """Two-sided point of Student's t."""
        return float(special.stdtrit(degrees, (1 + self.value) / 2))


class Distribution(msgspec.Struct, frozen=True):
    """Statistics of a sample. A percentile is None if less than one value lies beyond it."""

    count: int
    mean: float
    sd: float
    min: float
    max: float
    p50: float | None
    p90: float | None
    p95: float | None
    p99: float | None
    p999: float | None


def describe(values: Samples) -> Distribution | None:
    """None for an empty sample."""
    sample = np.asarray(values, dtype=np.float64)
    if sample.size == 0:
        return None
    return Distribution(
        count=int(sample.size),
        mean=float(sample.mean()),
        sd=float(sample.std(ddof=1)) if sample.size > 1 else 0.0,
        min=float(sample.min()),
        max=float(sample.max()),
        p50=percentile(sample, 0.5),
        p90=percentile(sample, 0.9),
        p95=percentile(sample, 0.95),
        p99=percentile(sample, 0.99),
        p999=percentile(sample, 0.999),
    )


def percentile(values: Samples, share: float) -> float | None:
    """A percentile by linear interpolation; None if less than one value lies beyond it."""
    sample = np.asarray(values, dtype=np.float64)
    if sample.size == 0 or sample.size * (1 - share) < 0.999999:
        return None
    return float(np.quantile(sample, share))


class Interval(msgspec.Struct, frozen=True):
    """An estimate and its confidence interval; a single sample has no interval."""

    estimate: float
    low: float | None = None
    high: float | None = None

    def excludes(self, value: float) -> bool:
        return self.low is not None and self.high is not None and not self.low <= value <= self.high


def paired_ratio(
    a: Sequence[float], b: Sequence[float], confidence: Confidence = Confidence.P95
) -> Interval | None:
    """Geometric mean of b/a over paired rounds, with Student's t on the logarithms.

    None without usable pairs. Pairs with a value that is not positive are left out.
    """
    logs = [math.log(y / x) for x, y in zip(a, b, strict=True) if x > 0 and y > 0]
    if not logs:
        return None
    mean = sum(logs) / len(logs)
    if len(logs) < 2:
        return Interval(math.exp(mean))
    variance = sum((value - mean) ** 2 for value in logs) / (len(logs) - 1)
    half = confidence.t(len(logs) - 1) * math.sqrt(variance / len(logs))
    return Interval(math.exp(mean), math.exp(mean - half), math.exp(mean + half))
