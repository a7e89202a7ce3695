"""What a token costs alone, from steps that many shared."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from telemetry.cost import CostFit, CostSums, StepSample

costs = st.floats(0.001, 10.0)


def ms(fit: CostFit, depth: float, tokens: int, token_layers: float) -> float:
    return fit.step_ms + fit.layer_ms * depth + fit.token_ms * tokens + fit.token_layer_ms * token_layers


def steps(fit: CostFit, seed: int, noise: float = 0.0, depths: tuple[int, ...] = (10, 20, 30)) -> CostSums:
    """Of mixed batches, with normal noise in proportion to the time."""
    draw, sums = random.Random(seed), CostSums()
    for _ in range(400):
        depth, tokens = draw.choice(depths), draw.choice((1, 4, 16, 64, 256))
        layers = tokens * depth * draw.uniform(0.5, 1.0) if len(depths) > 1 else tokens * depth
        time = ms(fit, depth, tokens, layers) * (1 + draw.gauss(0, noise))
        sums.add(StepSample(depth, tokens, layers, time))
    return sums


@given(costs, costs, costs, costs)
def test_what_made_the_times_is_found_again(
    step: float, layer: float, token: float, token_layer: float
) -> None:
    made = CostFit(step, layer, token, token_layer)
    found = steps(made, 1).fit()
    assert found is not None
    for depth in (10, 20, 30):
        assert found.decode_ms(depth) == pytest.approx(made.decode_ms(depth), rel=0.02)
        assert found.prefill_ms(100, depth) == pytest.approx(made.prefill_ms(100, depth), rel=0.02)


@pytest.mark.parametrize("seed", range(5))
def test_noise_averages_out(seed: int) -> None:
    made = CostFit(2.0, 0.4, 0.05, 0.01)
    found = steps(made, seed, noise=0.1).fit()
    assert found is not None
    assert found.decode_ms(30) == pytest.approx(made.decode_ms(30), rel=0.1)
    assert found.request_ms(100, 50, 30, 20) == pytest.approx(made.request_ms(100, 50, 30, 20), rel=0.1)


def test_at_a_single_depth_what_is_said_of_that_depth_holds() -> None:
    made = CostFit(2.0, 0.4, 0.05, 0.01)
    found = steps(made, 3, depths=(20,)).fit()
    assert found is not None
    assert found.decode_ms(20) == pytest.approx(made.decode_ms(20), rel=0.01)
    assert found.prefill_ms(64, 20) == pytest.approx(made.prefill_ms(64, 20), rel=0.01)


@given(
    st.lists(
        st.tuples(st.integers(1, 40), st.integers(1, 300), st.floats(0, 1), st.floats(0, 500)), min_size=1
    )
)
def test_no_cost_is_negative_whatever_was_seen(seen: list[tuple[int, int, float, float]]) -> None:
    sums = CostSums()
    for depth, tokens, share, time in seen:
        sums.add(StepSample(depth, tokens, tokens * depth * share, time))
    found = sums.fit()
    assert found is not None
    assert min(found.step_ms, found.layer_ms, found.token_ms, found.token_layer_ms) >= 0


def test_without_a_step_there_is_no_fit() -> None:
    assert CostSums().fit() is None


def test_a_b_and_the_idealized_runtime() -> None:
    fit = CostFit(step_ms=1.0, layer_ms=0.5, token_ms=0.25, token_layer_ms=0.125)
    assert (fit.a_ms, fit.b_ms) == (1.25, 0.625)
    assert fit.decode_ms(8) == 6.25
    assert fit.prefill_ms(4, 8) == 1 + 4 + 4 * (0.25 + 1.0)
    assert fit.request_ms(4, 10, prompt_depth=8, depth=8) == 10 + 62.5
