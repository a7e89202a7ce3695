"""Statistics of samples: percentiles, paired ratios with intervals. Pure, on numpy arrays."""

import enum
import math
from collections.abc import Sequence

import msgspec
import numpy as np
import numpy.typing as npt

Samples = Sequence[float] | npt.NDArray[np.float64]

# Two-sided 95% and 99% points of Student's t for 1 to 30 degrees of freedom.
_T95 = (
    "12.706 4.303 3.182 2.776 2.571 2.447 2.365 2.306 2.262 2.228 "
    "2.201 2.179 2.160 2.145 2.131 2.120 2.110 2.101 2.093 2.086 "
    "2.080 2.074 2.069 2.064 2.060 2.056 2.052 2.048 2.045 2.042"
)
_T99 = (
    "63.657 9.925 5.841 4.604 4.032 3.707 3.499 3.355 3.250 3.169 "
    "3.106 3.055 3.012 2.977 2.947 2.921 2.898 2.878 2.861 2.845 "
    "2.831 2.819 2.807 2.797 2.787 2.779 2.771 2.763 2.756 2.750"
)


class Confidence(enum.Enum):
    """How sure an interval is: points of Student's t, and of the normal distribution beyond them."""

    P95 = (_T95, 1.959964)
    P99 = (_T99, 2.575829)

    def t(self, degrees: int) -> float:
        """Two-sided point; beyond the table by its series in 1/degrees."""
        text, z = self.value
        table = text.split()
        if degrees <= len(table):
            return float(table[degrees - 1])
        return float(z + (z**3 + z) / (4 * degrees) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * degrees**2))


class Distribution(msgspec.Struct, frozen=True):
    """A sample in a few numbers. A percentile is None where fewer than one sample lies beyond it."""

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
    """By linear interpolation. None where the sample cannot tell: less than one value is beyond it."""
    sample = np.asarray(values, dtype=np.float64)
    if sample.size == 0 or sample.size * (1 - share) < 0.999999:
        return None
    return float(np.quantile(sample, share))


class Interval(msgspec.Struct, frozen=True):
    """An estimate and its confidence interval; without an interval where one sample allows none."""

    estimate: float
    low: float | None = None
    high: float | None = None

    def excludes(self, value: float) -> bool:
        return self.low is not None and self.high is not None and not self.low <= value <= self.high


def paired_ratio(
    a: Sequence[float], b: Sequence[float], confidence: Confidence = Confidence.P95
) -> Interval | None:
    """Geometric mean of b/a over paired rounds, with Student's t on the logarithms.

    None where nothing can be divided. Pairs with a value that is not positive are left out.
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
