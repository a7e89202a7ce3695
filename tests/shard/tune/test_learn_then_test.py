"""Learn-then-Test: p-values are those of the definition, and what it promises holds where truth is known."""

import math
import random
from fractions import Fraction

import pytest

from shard.tune.learn_then_test import Bound, largest_risk, num_needed, p_value, upper_bound, walk

REPETITIONS, SEQUENCES = 200, 400
BOUND = Bound(risk=0.05, confidence=0.9)
TRUE_RISKS = [0.002 * step for step in range(1, 50)]  # of settings from safe to risky


def exact_p_value(risk: Fraction, n: int, bound: Fraction) -> float:
    """By the definition, the binomial's probabilities as fractions."""
    most = math.ceil(n * risk)
    cdf = sum(math.comb(n, k) * bound**k * (1 - bound) ** (n - k) for k in range(most + 1))
    low, b = float(min(risk, bound)), float(bound)
    tail = (1 - low) * math.log((1 - low) / (1 - b))
    divergence = tail + (low * math.log(low / b) if low else 0.0)
    return min(1.0, math.exp(-n * divergence), math.e * float(cdf))


@pytest.mark.parametrize("n", [1, 40, 400, 1000])
@pytest.mark.parametrize("bound", [Fraction(1, 50), Fraction(1, 20), Fraction(3, 10)])
@pytest.mark.parametrize("share", [Fraction(0), Fraction(1, 3), Fraction(9, 10), Fraction(1), Fraction(2)])
def test_p_values_are_those_of_the_definition(n: int, bound: Fraction, share: Fraction):
    risk = bound * share
    assert p_value(float(risk), n, float(bound)) == pytest.approx(exact_p_value(risk, n, bound), rel=1e-9)


@pytest.mark.parametrize(
    ("risk", "n", "bound", "expected"),
    [(0.0, 100, 0.02, 0.98**100), (0.0, 10, 0.5, 2.0**-10), (0.25, 4, 0.5, math.exp(-4 * 0.1308120))],
)
def test_p_values_that_a_person_can_check(risk: float, n: int, bound: float, expected: float):
    assert p_value(risk, n, bound) == pytest.approx(expected, rel=1e-5)


def test_hundred_sequences_cannot_prove_two_per_cent():
    assert largest_risk(100, Bound(0.02, 0.9)) is None
    assert p_value(0.0, 100, 0.02) > 0.1
    needed = num_needed(0.0, Bound(0.02, 0.9))
    assert needed is not None
    assert p_value(0.0, needed, 0.02) <= 0.1 < p_value(0.0, needed - 1, 0.02)


def test_more_sequences_allow_more_risk_and_never_the_bound_itself():
    allowed = [largest_risk(n, BOUND) for n in (100, 200, 400, 800, 3200)]
    risks = [risk for risk in allowed if risk is not None]
    assert risks == allowed == sorted(risks)
    assert risks[-1] < BOUND.risk
    assert largest_risk(400, BOUND) == pytest.approx(0.03, abs=1e-6)


@pytest.mark.parametrize("risk", [0.0, 0.01, 0.03, 0.045])
def test_so_many_sequences_as_are_asked_for_would_pass(risk: float):
    needed = num_needed(risk, BOUND)
    assert needed is not None
    allowed = largest_risk(needed, BOUND)
    assert allowed is not None
    assert allowed >= risk - 1 / needed


def test_no_number_of_sequences_proves_what_is_not_so():
    assert num_needed(0.05, BOUND) is None
    assert num_needed(0.2, BOUND) is None
    assert num_needed(0.04999, BOUND) is None  # not in reason


def test_a_mean_is_below_its_upper_bound_as_often_as_said():
    draw = random.Random(3)
    for true in (0.02, 0.3, 0.7):
        misses = 0
        for _ in range(REPETITIONS):
            seen = sum(draw.random() < true for _ in range(100)) / 100
            misses += upper_bound(seen, 100, 0.1) < true
        assert misses <= 0.1 * REPETITIONS
    assert 0.3 < upper_bound(0.3, 4000, 0.1) < 0.33
    assert upper_bound(1.0, 50, 0.1) == 1.0


def test_the_walk_ends_at_the_first_setting_that_fails():
    measured = []

    def measure(risk: float) -> list[float]:
        measured.append(risk)
        return [risk] * SEQUENCES

    walked = walk([0.0, 0.01, 0.045, 0.02], measure, BOUND)
    assert measured == [0.0, 0.01, 0.045]
    assert [p <= BOUND.error for _, _, p in walked] == [True, True, False]


def draws(draw: random.Random, true: float) -> list[float]:
    """A sequence that goes wrong goes wrong altogether: risks spread as widely as they can."""
    return [float(draw.random() < true) for _ in range(SEQUENCES)]


def test_violations_stay_within_the_confidence_and_those_of_the_naive_rule_do_not():
    draw = random.Random(11)
    violations = naive_violations = allowed = 0
    for _ in range(REPETITIONS):
        seen = {true: draws(draw, true) for true in TRUE_RISKS}
        passed = [true for true, _, p in walk(TRUE_RISKS, seen.__getitem__, BOUND) if p <= BOUND.error]
        chosen = max(passed, default=0.0)
        naive = max(true for true in TRUE_RISKS if sum(seen[true]) / SEQUENCES <= BOUND.risk)
        allowed += bool(passed)
        violations += chosen > BOUND.risk
        naive_violations += naive > BOUND.risk
    assert violations <= BOUND.error * REPETITIONS
    assert naive_violations > 2 * BOUND.error * REPETITIONS
    assert allowed == REPETITIONS  # and not because nothing is ever allowed
