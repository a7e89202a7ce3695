"""Gains are of paired rounds, so that a slow hour does not count; memory and batch are arithmetic."""

import pytest

from loadgen.paper.outcome import outcomes_of
from loadgen.paper.systems import EARLY, FULL, HELIOS
from tests.loadgen.paper.parts import LOADS, part


def test_gains_are_those_within_rounds_however_rounds_differ():
    for outcome in outcomes_of(part()):
        gain = outcome.gains[EARLY]
        assert gain.throughput is not None
        assert gain.throughput.estimate == pytest.approx(2.0, rel=1e-3)
        assert gain.throughput.low == pytest.approx(2.0, rel=1e-2)
        assert gain.response is not None
        assert gain.response.estimate == pytest.approx(2.0, rel=1e-3)
        assert gain.energy is not None
        assert gain.energy.estimate == pytest.approx(2.0, rel=1e-3)


def test_figures_are_medians_over_rounds():
    outcome = outcomes_of(part())[0]
    assert outcome.load == LOADS[0]
    assert outcome.systems[FULL].response_ms == pytest.approx(1000)
    assert outcome.systems[HELIOS].response_ms == pytest.approx(500)
    assert outcome.systems[HELIOS].joules_per_token == pytest.approx(0.5)


def test_memory_and_largest_batch_follow_the_depth_that_served():
    outcome = outcomes_of(part())[0]
    full, helios = outcome.systems[FULL], outcome.systems[HELIOS]
    assert (full.largest_batch, full.memory_bytes) == (8, 2_600 + 8 * 2_400)
    assert (helios.largest_batch, helios.memory_bytes) == ((21_800 - 800) // 600, 800 + 8 * 600)
    assert outcome.gains[FULL].batch == pytest.approx(35 / 8)
    assert outcome.gains[FULL].memory_saved == pytest.approx(1 - 5_600 / 21_800)


def test_trials_and_decisions_to_stay_are_no_swaps():
    helios = outcomes_of(part())[0].systems[HELIOS]
    assert (helios.swaps, helios.trials) == (3, 3)  # one of each in every round
    assert outcomes_of(part())[0].systems[EARLY].swaps == 0


def test_the_first_exit_is_the_shallowest_that_tokens_left_at():
    helios = outcomes_of(part())[0].systems[HELIOS]
    assert helios.share_by_layer == {6: 1.0}
    assert helios.first_exit_share == 1.0
