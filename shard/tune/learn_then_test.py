"""Learn-then-Test (Angelopoulos et al. 2021): decides from observed answers which settings are safe. Pure
numbers; knows no model.

The risk of a sequence is a number in [0, 1], sequences are independent, and a setting's risk is their mean.
Settings are tested one after the other in an order declared beforehand, from safe to risky, each at the whole
error probability; the first that fails ends the walk (fixed-sequence testing). So the chance that any setting
that passed has a true risk above the bound is at most one minus the confidence.
"""

import bisect
import math
from collections.abc import Callable, Iterable
from typing import TypeVar

import msgspec
from scipy import optimize, special

MAX_SEQUENCES = 1 << 20  # more would be unreasonable

_Setting = TypeVar("_Setting")


class Bound(msgspec.Struct, frozen=True):
    """A requirement: the risk is at most `risk`, with probability `confidence`."""

    risk: float
    confidence: float

    @property
    def error(self) -> float:
        """Allowed probability of a wrong statement."""
        return 1 - self.confidence


def p_value(risk: float, num_sequences: int, bound: float) -> float:
    """Hoeffding-Bentkus: how likely a mean of `risk` or less is when the true one is above `bound`.

    min(exp(-n KL(min(r, b) || b)), e P(Binomial(n, b) <= ceil(n r))), Bates et al. 2021.
    """
    seen = min(risk, bound)
    divergence = special.rel_entr(seen, bound) + special.rel_entr(1 - seen, 1 - bound)
    hoeffding = math.exp(-num_sequences * divergence)
    most = math.ceil(num_sequences * risk - 1e-9)  # sums of fractions have rounding errors
    return min(1.0, hoeffding, math.e * float(special.bdtr(most, num_sequences, bound)))


def upper_bound(risk: float, num_sequences: int, error: float) -> float:
    """Upper bound of the true mean, wrong with probability `error` at most, if `risk` was observed."""
    if p_value(risk, num_sequences, 1.0) > error:
        return 1.0
    return float(optimize.bisect(lambda bound: p_value(risk, num_sequences, bound) - error, risk, 1.0))


def largest_risk(num_sequences: int, bound: Bound) -> float | None:
    """The largest mean that passes; None if not even sequences without errors would."""
    if not _passes(0.0, num_sequences, bound):
        return None
    return float(
        optimize.bisect(lambda risk: p_value(risk, num_sequences, bound.risk) - bound.error, 0.0, bound.risk)
    )


def num_needed(risk: float, bound: Bound) -> int | None:
    """Approximate number of sequences with which this mean would pass; None if above `MAX_SEQUENCES`."""
    if risk >= bound.risk:
        return None
    most = 1
    while not _passes(risk, most, bound):
        most *= 2
        if most > MAX_SEQUENCES:
            return None
    candidates = range(most // 2, most)
    return candidates.start + bisect.bisect_left(candidates, True, key=lambda n: _passes(risk, n, bound))


def walk(
    path: Iterable[_Setting], measure: Callable[[_Setting], list[float]], bound: Bound
) -> list[tuple[_Setting, float, float]]:
    """Test settings in order. Returns each with its mean risk and p-value, up to the first that fails."""
    walked = []
    for setting in path:
        risks = measure(setting)
        risk = math.fsum(risks) / len(risks)
        p = p_value(risk, len(risks), bound.risk)
        walked.append((setting, risk, p))
        if p > bound.error:
            break
    return walked


def _passes(risk: float, num_sequences: int, bound: Bound) -> bool:
    return p_value(risk, num_sequences, bound.risk) <= bound.error
