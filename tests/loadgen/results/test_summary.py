import msgspec
import numpy as np
import pytest

from loadgen.client.records import Outcome
from loadgen.client.scrape import Scrape
from loadgen.load.run import Run
from loadgen.load.slo import SLO
from loadgen.load.trim import Trim
from loadgen.results.summary import summarise
from tests.loadgen.making import record, run_of


def steady(count: int = 200, rate: float = 10.0) -> Run:
    """Ten requests a second of five tokens each, 100 ms to the first and 20 ms between."""
    starts = np.arange(count) / rate
    records = [
        record(at, [at + 0.1 + 0.02 * k for k in range(5)], number=i, group="ab"[i % 2], input_tokens=50)
        for i, at in enumerate(starts.tolist())
    ]
    return run_of(records)


def test_latencies_and_rates_of_a_known_run() -> None:
    found = summarise(steady(), SLO.parse(("ttft:150ms",)), Trim())
    assert found.latencies.ttft is not None
    assert found.latencies.itl is not None
    assert found.latencies.e2e is not None
    assert found.latencies.ttft.p50 == pytest.approx(100)
    assert found.latencies.itl.p99 == pytest.approx(20)
    assert found.latencies.e2e.mean == pytest.approx(180)
    assert found.throughput.output_tokens_per_s == pytest.approx(50, rel=0.03)
    assert found.throughput.total_tokens_per_s == pytest.approx(550, rel=0.03)
    assert found.throughput.requests_per_s == pytest.approx(10, rel=0.03)
    assert found.throughput.mean_in_flight == pytest.approx(1.8, rel=0.03)
    assert found.throughput.good_share == 1.0
    assert set(found.by_group) == {"a", "b"}


def test_latency_counts_from_the_intended_start() -> None:
    """A client or a server that delays a start does not hide it (coordinated omission)."""
    late = record(1.0, [3.0], begun=2.9, sent=2.9)
    assert late.ttft_ms == pytest.approx(2000)
    assert late.e2e_ms == pytest.approx(2000)


def test_what_failed_is_counted_and_not_timed() -> None:
    run = steady(40)
    run.records += [
        record(1.0, [9.0], outcome=Outcome.STALL, detail="silent"),
        record(1.0, outcome=Outcome.REFUSED),
    ]
    found = summarise(run, SLO(), Trim("0%"))
    assert found.outcomes == {"ok": 40, "stall": 1, "refused": 1}
    assert found.failures == {"stall: silent": 1}
    assert found.latencies.ttft is not None
    assert found.latencies.ttft.max == pytest.approx(100)
    assert found.throughput.good_share == pytest.approx(40 / 42)


def test_hanging_up_is_not_held_against_the_server() -> None:
    run = steady(40)
    run.records += [record(1.0, [1.1], outcome=Outcome.CANCELLED)]
    assert summarise(run, SLO(), Trim("0%")).throughput.good_share == 1.0


def test_queue_time_comes_from_the_server_s_own_histogram() -> None:
    first = Scrape(0.0, {"tgi_request_queue_duration_sum": 1.0, "tgi_request_queue_duration_count": 10.0})
    last = Scrape(9.0, {"tgi_request_queue_duration_sum": 3.0, "tgi_request_queue_duration_count": 50.0})
    run = steady()
    run.scrapes = [first, last]
    assert summarise(run, SLO(), Trim()).server.mean_queue_ms == pytest.approx(50)


def test_tokens_that_come_several_to_an_event_count_by_the_server_s_figure() -> None:
    run = run_of([record(at / 10, [at / 10 + 0.1, at / 10 + 0.2], output_tokens=8) for at in range(200)])
    found = summarise(run, SLO(), Trim())
    assert found.throughput.output_tokens_per_s == pytest.approx(80, rel=0.05)
    assert found.latencies.tpot is not None
    assert found.latencies.tpot.p50 == pytest.approx(100 / 7)


def test_a_run_without_an_answer_has_a_summary_that_can_be_written() -> None:
    run = run_of([record(0.0, outcome=Outcome.CONNECT, ended=0.1)])
    found = summarise(run, SLO(), Trim())
    assert found.latencies.ttft is None
    assert found.integrity.lost == 1
    msgspec.json.encode(msgspec.to_builtins(found, str_keys=True))


def test_an_empty_run_has_a_summary() -> None:
    assert summarise(run_of([], ended=1.0, last_start=0.0), SLO(), Trim()).num_requests == 0


def test_the_cached_share_is_of_those_prompts_whose_server_tells() -> None:
    run = steady(20)
    assert summarise(run, SLO(), Trim("0%")).cached_share is None
    for one, cached in zip(run.records, (0, 20, 40), strict=False):
        one.cached_tokens = cached
    assert summarise(run, SLO(), Trim("0%")).cached_share == pytest.approx(60 / 150)
