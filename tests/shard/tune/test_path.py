"""The path of thresholds: from safe to risky, through what can be proven, and each exit as it deserves."""

import msgspec
import numpy as np
import pytest

from shard.tune.costs import Costs
from shard.tune.learn_then_test import Bound, largest_risk
from shard.tune.path import NEVER, STEPS, Survey, Votes, declare_path

BOUND = Bound(risk=0.1, confidence=0.9)
NUM_LAYERS, TOKENS, SEQUENCES = 12, 4000, 400
COSTS = Costs(segment_ms=[3.0, 3.0, 3.0, 3.0], ask_ms=[0.1, 0.1, 0.1], head_ms=1.0)


def votes(layer: int, skill: float, seed: int = 0) -> Votes:
    """An exit whose confidence is how often it is right; more so, the more skilled."""
    draw = np.random.default_rng(seed + layer)
    confidences = draw.beta(1 + 4 * skill, 2, TOKENS)
    return Votes(layer, confidences, draw.random(TOKENS) < confidences)


@pytest.fixture
def survey() -> Survey:
    return Survey([votes(3, 0.3), votes(6, 0.6), votes(9, 0.9)], NUM_LAYERS)


def test_it_goes_from_safe_to_risky_through_what_can_be_proven(survey: Survey):
    path = declare_path(survey, SEQUENCES, BOUND, COSTS)
    risks = [survey.risk(setting) for setting in path]
    provable = largest_risk(SEQUENCES, BOUND)
    assert provable is not None
    assert len(path) > len(STEPS) / 2
    assert risks == sorted(risks)
    assert risks[0] < provable / 2 < 1.5 * provable < risks[-1] <= 2 * provable
    assert len({tuple(setting.values()) for setting in path}) == len(path)
    assert all(sum(survey.shares(setting)) > 0 for setting in path)


def test_an_exit_that_costs_more_than_it_saves_is_not_used(survey: Survey):
    dear = msgspec.structs.replace(COSTS, ask_ms=[8.0, 0.1, 0.1])
    path = declare_path(survey, SEQUENCES, BOUND, dear)
    assert path
    assert all(setting[3] == NEVER for setting in path)
    assert all(min(setting[6], setting[9]) < NEVER for setting in path)
    ruinous = msgspec.structs.replace(COSTS, ask_ms=[90.0, 90.0, 90.0])
    for setting in declare_path(survey, SEQUENCES, BOUND, ruinous):  # one at least, to be known all the same
        assert sum(threshold < NEVER for threshold in setting.values()) == 1


def test_what_leaving_early_can_gain_is_what_one_counts_by_hand(survey: Survey):
    assert COSTS.full_ms == 13
    assert COSTS.speedup_bound([0.0, 0.0, 0.0], [0.0, 0.0, 0.0]) == 1
    all_at_first = COSTS.speedup_bound([1.0, 0.0, 0.0], [1.0, 1.0, 1.0])
    assert all_at_first == pytest.approx(13 / 3.1)
    half = COSTS.speedup_bound([0.5, 0.0, 0.0], [1.0, 0.0, 0.0])
    assert half == pytest.approx(13 / (3.1 + 0.5 * 10))
    assert COSTS.break_even(0) == pytest.approx(0.1 / 10)
    assert COSTS.capped_speedup_bound(1) == pytest.approx(13 / 6.1)
    at_break_even = COSTS.speedup_bound([0.01, 0.0, 0.0], [1.0, 0.0, 0.0])
    assert at_break_even == pytest.approx(1)
    by_probe = Survey(survey.votes, NUM_LAYERS, by_logits=False)
    everywhere = {3: 0.5, 6: 0.5, 9: 0.5}
    leaving = survey.shares(everywhere)
    assert by_probe.speedup_bound(everywhere, leaving, COSTS) > survey.speedup_bound(
        everywhere, leaving, COSTS
    )


def test_an_exit_that_saves_more_may_err_more():
    """Three exits that are equally good."""
    same = [Votes(layer, *_same()) for layer in (3, 6, 9)]
    for setting in declare_path(Survey(same, NUM_LAYERS), SEQUENCES, BOUND, COSTS):
        assert setting[3] <= setting[6] <= setting[9]


def _same() -> tuple[np.ndarray, np.ndarray]:
    exit_votes = votes(3, 0.6)
    return exit_votes.confidences, exit_votes.agrees


def test_nobody_leaves_where_nothing_is_right_or_nothing_can_be_proven(survey: Survey):
    wrong = votes(3, 0.3)
    useless = Votes(3, wrong.confidences, np.zeros(TOKENS, dtype=bool))
    path = declare_path(Survey([useless, *survey.votes[1:]], NUM_LAYERS), SEQUENCES, BOUND, COSTS)
    assert path
    assert all(setting[3] == NEVER for setting in path)
    assert declare_path(Survey([useless], NUM_LAYERS), SEQUENCES, BOUND, COSTS) == []
    assert declare_path(survey, 100, Bound(0.02, 0.9), COSTS) == []


def test_rows_that_the_probe_keeps_from_the_head_never_leave():
    kept = Votes(3, np.full(TOKENS, -1.0), np.ones(TOKENS, dtype=bool))
    for setting in declare_path(Survey([kept, votes(9, 0.9)], NUM_LAYERS), SEQUENCES, BOUND, COSTS):
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
