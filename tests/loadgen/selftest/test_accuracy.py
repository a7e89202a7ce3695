"""The client's stamps against the times at which another process sent each event, on the clock both read."""

from typing import Any

import numpy as np
import pytest

from loadgen.client.records import Outcome
from loadgen.load.live import NoView
from loadgen.load.measure import Screen, measure_load
from loadgen.load.options import LoadOptions
from loadgen.load.plan import plan_of
from loadgen.load.run import Pace, Run
from loadgen.load.target import reach
from loadgen.results.health import Verdict
from loadgen.selftest.accuracy import SelftestOptions, compare_with_truth, try_accuracy
from loadgen.selftest.process import synthetic_server
from loadgen.selftest.server import Behaviour

STREAMS, TOKENS = 200, 30


async def stamped(url: str) -> tuple[Run, dict[int, dict[str, Any]]]:
    """Two hundred streams begun within half a second, and what the server noted of them."""
    plan = plan_of(LoadOptions(workload="chat", output_tokens=str(TOKENS)))
    async with reach(url, plan) as target:
        pace = Pace(times=iter([index * 0.5 / STREAMS for index in range(STREAMS)]))
        run = await measure_load(target, plan.workload(target.filler), pace, Screen(NoView(), "test"))
        truth = (await target.client.fetch("GET", "/truth")).json()
        return run, {n: truth[f"{target.client.name}-{n}"] for n in range(len(run.records))}


@pytest.mark.parametrize("step_ms", [0.0, 50.0])
async def test_every_event_is_stamped_once_after_it_was_sent(step_ms: float) -> None:
    """No stamp is early, none is missing, and what is reported differs from the truth by no more than the
    latest stamp was late: so the figures are as good as the lag that the client owns up to.
    """
    with synthetic_server(Behaviour(ttft_ms=40, itl_ms=30, step_ms=step_ms)) as url:
        run, truth = await stamped(url)
    assert all(record.outcome is Outcome.OK for record in run.records)
    late = np.array([np.asarray(r.token_times) - truth[r.number]["sent"] for r in run.records]) * 1e3
    assert late.shape == (STREAMS, TOKENS)
    assert late.min() > 0
    found = compare_with_truth(run, truth)
    worst_ms = late.max() + max(r.start_delay_ms + ((r.sent or 0) - r.begun) * 1e3 for r in run.records)
    assert len(found.comparisons) >= 8
    for comparison in found.comparisons:
        assert abs(comparison.reported_ms - comparison.true_ms) <= worst_ms
    itl = [comparison for comparison in found.comparisons if comparison.measure == "itl"]
    assert all(comparison.true_ms >= 29 for comparison in itl if comparison.point != "p50") or step_ms


async def test_a_slow_client_is_noticed_and_said() -> None:
    options = SelftestOptions(streams=50, events_per_s=1000, duration=0.5, slow_client_ms=60)
    with synthetic_server(Behaviour(ttft_ms=40, itl_ms=options.itl_ms)) as url:
        found = await try_accuracy(url, options)
    assert found.health.verdict is Verdict.SATURATED
    assert "could not keep up" in found.health.says
    assert found.is_honest
