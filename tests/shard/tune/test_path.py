"""The path of thresholds: from safe to risky, through what can be proven, and each exit as it deserves."""

import itertools

import numpy as np
import pytest

from shard.tune.ltt import Bound, largest_risk
from shard.tune.path import NEVER, STEPS, Survey, Votes, declare_path, rising_fit

BOUND = Bound(risk=0.1, confidence=0.9)
NUM_LAYERS, TOKENS, SEQUENCES = 12, 4000, 400


def votes(layer: int, skill: float, seed: int = 0) -> Votes:
    """An exit whose confidence is how often it is right; more so, the more skilled."""
    draw = np.random.default_rng(seed + layer)
    confidences = draw.beta(1 + 4 * skill, 2, TOKENS)
    return Votes(layer, confidences, draw.random(TOKENS) < confidences)


@pytest.fixture
def survey() -> Survey:
    return Survey([votes(3, 0.3), votes(6, 0.6), votes(9, 0.9)], NUM_LAYERS)


def test_it_goes_from_safe_to_risky_through_what_can_be_proven(survey: Survey):
    path = declare_path(survey, SEQUENCES, BOUND)
    risks = [survey.risk(setting) for setting in path]
    provable = largest_risk(SEQUENCES, BOUND)
    assert provable is not None
    assert len(path) > len(STEPS) / 2
    assert risks == sorted(risks)
    assert risks[0] < provable / 2 < 1.5 * provable < risks[-1] <= 2 * provable
    for before, after in itertools.pairwise(path):
        assert all(after[layer] <= before[layer] for layer in before)  # all exits move together
        assert before != after


def test_an_exit_that_saves_more_may_err_more():
    """Three exits that are equally good."""
    same = [Votes(layer, *_same()) for layer in (3, 6, 9)]
    for setting in declare_path(Survey(same, NUM_LAYERS), SEQUENCES, BOUND):
        assert setting[3] <= setting[6] <= setting[9]


def _same() -> tuple[np.ndarray, np.ndarray]:
    one = votes(3, 0.6)
    return one.confidences, one.agrees


def test_nobody_leaves_where_nothing_is_right_or_nothing_can_be_proven(survey: Survey):
    wrong = votes(3, 0.3)
    useless = Votes(3, wrong.confidences, np.zeros(TOKENS, dtype=bool))
    path = declare_path(Survey([useless, *survey.votes[1:]], NUM_LAYERS), SEQUENCES, BOUND)
    assert path
    assert all(setting[3] == NEVER for setting in path)
    assert declare_path(Survey([useless], NUM_LAYERS), SEQUENCES, BOUND) == []
    assert declare_path(survey, 100, Bound(0.02, 0.9)) == []


def test_rows_that_the_probe_keeps_from_the_head_never_leave():
    kept = Votes(3, np.full(TOKENS, -1.0), np.ones(TOKENS, dtype=bool))
    for setting in declare_path(Survey([kept, votes(9, 0.9)], NUM_LAYERS), SEQUENCES, BOUND):
        assert not kept.reached(setting[3]).any()


def test_a_threshold_of_one_is_never_reached():
    sure = Votes(3, np.ones(5), np.zeros(5, dtype=bool))
    assert not sure.reached(NEVER).any()
    assert Survey([sure], NUM_LAYERS).risk({3: NEVER}) == 0


def test_risk_counts_a_token_at_the_first_exit_that_takes_it():
    first = Votes(3, np.array([0.9, 0.9, 0.1, 0.1]), np.array([True, False, True, False]))
    second = Votes(6, np.array([0.9, 0.9, 0.9, 0.1]), np.array([False, True, False, False]))
    both = Survey([first, second], NUM_LAYERS)
    assert both.risk({3: 0.5, 6: 0.5}) == 0.5
    assert both.risk({3: NEVER, 6: 0.5}) == 0.5
    assert both.risk({3: 0.5, 6: NEVER}) == 0.25
    assert both.risk({3: 0.0, 6: 0.0}) == 0.5


def test_the_rising_fit_is_the_nearest_rising_sequence():
    draw = np.random.default_rng(1)
    for _ in range(20):
        values = draw.random(7)
        fit = rising_fit(values)
        assert (np.diff(fit) >= -1e-12).all()
        assert fit.sum() == pytest.approx(values.sum())
        for _ in range(200):
            other = np.sort(fit + draw.normal(0, 0.1, 7))
            assert ((fit - values) ** 2).sum() <= ((other - values) ** 2).sum() + 1e-12
