"""The way that is faster is found and kept, whatever the noise, and looked at again."""

import random

import pytest

from shard.exits.deferral import Deferral, FixedCost
from shard.exits.fallback import HOLD_STEPS, NUM_WINDOWS, WARMUP_STEPS, WINDOW_STEPS, ExitFallback

TRIALS = 2 * NUM_WINDOWS * (WARMUP_STEPS + WINDOW_STEPS)


def run(
    fallback: ExitFallback, steps: int, rows: int, ms_on: float, ms_off: float, noise: float = 0.0
) -> float:
    """The share of steps run with exits."""
    draw, count = random.Random(2), 0
    for _ in range(steps):
        exits_on = fallback.wants_exits(rows)
        count += exits_on
        fallback.note(rows, rows, (ms_on if exits_on else ms_off) * (1 + noise * draw.expovariate(1)))
    return count / steps


@pytest.mark.parametrize("noise", [0.0, 0.3])
def test_exits_stay_where_they_pay_and_go_where_they_cost(noise: float):
    pays, costs = ExitFallback(), ExitFallback()
    run(pays, TRIALS, 8, 5.0, 10.0, noise)
    run(costs, TRIALS, 8, 12.0, 8.0, noise)
    assert run(pays, 500, 8, 5.0, 10.0, noise) == 1.0
    assert run(costs, 500, 8, 12.0, 8.0, noise) == 0.0


def test_the_slower_way_takes_a_small_share_of_all_steps():
    fallback = ExitFallback()
    assert run(fallback, 20 * (HOLD_STEPS + TRIALS), 4, 12.0, 8.0) < 0.03


def test_a_change_is_noticed_at_the_next_trials():
    fallback = ExitFallback()
    run(fallback, TRIALS + 10, 4, 12.0, 8.0)
    run(fallback, HOLD_STEPS + TRIALS, 4, 4.0, 8.0)
    assert run(fallback, 100, 4, 4.0, 8.0) == 1.0


def test_sizes_of_batch_are_judged_apart():
    fallback = ExitFallback()
    run(fallback, TRIALS, 1, 5.0, 10.0)
    run(fallback, TRIALS, 32, 12.0, 8.0)
    assert fallback.wants_exits(1)
    assert not fallback.wants_exits(32)


def test_rows_that_wait_are_no_loss():
    """Three steps of 10 ms, then one of 30 that goes deep: 16 tokens in 60 ms, wherever a window begins."""
    fallback = ExitFallback()
    cycle = 0
    for _ in range(3 * TRIALS):
        if fallback.wants_exits(4):
            cycle = (cycle + 1) % 4
            fallback.note(4, *((4, 30.0, 0) if cycle == 0 else (4, 10.0, 2)))
        else:
            cycle = 0
            fallback.note(4, 4, 16.0)
    assert fallback.wants_exits(4)


def test_without_fallback_exits_are_always_on():
    assert run(ExitFallback(enabled=False), 300, 8, 100.0, 1.0) == 1.0


def ms_per_token(wanted: float, num_rows: int, shallow_ms: float, deep_ms: float, stay: float) -> float:
    """Of many rows that leave by chance and go deep once so many have gathered."""
    draw, waiting, num_tokens, ms = random.Random(4), 0, 0, 0.0
    for _ in range(5_000):
        fresh = num_rows - waiting
        staying = sum(draw.random() < stay for _ in range(fresh))
        num_tokens, ms, waiting = num_tokens + fresh - staying, ms + shallow_ms, waiting + staying
        if waiting >= wanted or fresh == staying:
            num_tokens, ms, waiting = num_tokens + waiting, ms + deep_ms, 0
    return ms / num_tokens


@pytest.mark.parametrize("num_rows", [8, 32])
@pytest.mark.parametrize(("shallow_ms", "deep_ms", "stay"), [(8, 18, 0.26), (58, 133, 0.26), (5, 40, 0.1)])
def test_as_many_rows_gather_as_cost_least_per_token(num_rows, shallow_ms, deep_ms, stay):
    """Against a simulation of every other number."""
    deferral = Deferral()
    deferral.note_shallow(num_rows, shallow_ms)
    deferral.note_vote(num_voters=100, num_staying=round(100 * stay))
    deferral.note_deep(10, deep_ms)
    costs = (shallow_ms, deep_ms, stay)
    best = min(ms_per_token(count, num_rows, *costs) for count in range(0, num_rows, num_rows // 8))
    assert ms_per_token(deferral.wanted(num_rows), num_rows, *costs) < 1.03 * best


def test_nobody_waits_where_a_deep_pass_is_cheap():
    deferral = Deferral()
    deferral.note_shallow(32, 20.0)
    deferral.note_vote(num_voters=100, num_staying=50)
    deferral.note_deep(10, 5.0)
    assert deferral.wanted(32) == 0


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
