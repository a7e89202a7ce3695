"""The way that is faster is found and kept, whatever the noise, and looked at again."""

import random

import pytest

from shard.deferral import Deferral, FixedCost
from shard.governor import HOLD_STEPS, NUM_WINDOWS, WARMUP_STEPS, WINDOW_STEPS, Governor

TRIALS = 2 * NUM_WINDOWS * (WARMUP_STEPS + WINDOW_STEPS)


def run(governor: Governor, steps: int, rows: int, ms_on: float, ms_off: float, noise: float = 0.0) -> float:
    """The share of steps run with exits."""
    draw, count = random.Random(2), 0
    for _ in range(steps):
        exits_on = governor.wants_exits(rows)
        count += exits_on
        governor.note(rows, rows, (ms_on if exits_on else ms_off) * (1 + noise * draw.expovariate(1)))
    return count / steps


@pytest.mark.parametrize("noise", [0.0, 0.3])
def test_exits_stay_where_they_pay_and_go_where_they_cost(noise: float):
    pays, costs = Governor(), Governor()
    run(pays, TRIALS, 8, 5.0, 10.0, noise)
    run(costs, TRIALS, 8, 12.0, 8.0, noise)
    assert run(pays, 500, 8, 5.0, 10.0, noise) == 1.0
    assert run(costs, 500, 8, 12.0, 8.0, noise) == 0.0


def test_the_slower_way_takes_a_small_share_of_all_steps():
    governor = Governor()
    assert run(governor, 20 * (HOLD_STEPS + TRIALS), 4, 12.0, 8.0) < 0.03


def test_a_change_is_noticed_at_the_next_trials():
    governor = Governor()
    run(governor, TRIALS + 10, 4, 12.0, 8.0)
    run(governor, HOLD_STEPS + TRIALS, 4, 4.0, 8.0)
    assert run(governor, 100, 4, 4.0, 8.0) == 1.0


def test_sizes_of_batch_are_judged_apart():
    governor = Governor()
    run(governor, TRIALS, 1, 5.0, 10.0)
    run(governor, TRIALS, 32, 12.0, 8.0)
    assert governor.wants_exits(1)
    assert not governor.wants_exits(32)


def test_without_fallback_exits_are_always_on():
    assert run(Governor(enabled=False), 300, 8, 100.0, 1.0) == 1.0


def test_as_many_rows_gather_as_cost_least_per_token():
    """The closed form against a search over all sizes."""
    deferral = Deferral()
    deferral.note_shallow(32, 8.0)
    deferral.note_vote(num_voters=100, num_staying=26)
    deferral.note_deep(10, 18.0)
    for rows in (8, 32, 64):
        costs = {k: 8 / (rows - k / 2) + 0.26 * 18 / k for k in range(1, rows)}
        assert abs(deferral.wanted(rows) - min(costs, key=costs.__getitem__)) <= 1


def test_what_grows_with_tokens_is_no_reason_to_wait():
    deferral = Deferral()
    deferral.note_vote(num_voters=100, num_staying=26)
    for num_tokens in range(1, 33):
        deferral.note_shallow(num_tokens, 6.0 + 0.1 * num_tokens)
        deferral.note_deep(num_tokens, 0.5 * num_tokens)
    assert deferral.wanted(32) < 1


def test_fixed_costs_are_found_under_what_grows():
    cost = FixedCost()
    for num_tokens in (1, 8, 3, 30, 12, 4):
        cost.note(num_tokens, 20.0 + 1.5 * num_tokens)
    assert cost.ms == pytest.approx(20.0)


def test_nothing_gathers_before_anything_is_known():
    assert Deferral().wanted(64) == 0
