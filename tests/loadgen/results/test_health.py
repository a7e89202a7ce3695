from array import array

from loadgen.load.run import Run
from loadgen.results.health import Verdict, client_health
from tests.loadgen.making import record, run_of


def run_with(lag_ms: float, count: int = 1000, **changes: object) -> Run:
    lags = array("d", [lag_ms / 1e3] * count)
    return run_of([record(0.0, [10.0])], lags=lags, **changes)


def test_a_client_in_time_is_fine() -> None:
    assert client_health(run_with(0.2)).verdict is Verdict.FINE


def test_a_client_somewhat_late_says_by_how_much() -> None:
    lags = array("d", [0.0001] * 900 + [0.005] * 100)
    health = client_health(run_of([record(0.0, [10.0])], lags=lags))
    assert health.verdict is Verdict.STRAINED
    assert "5.0 ms" in health.says


def test_a_client_that_is_late_all_the_time_is_saturated() -> None:
    health = client_health(run_with(30.0))
    assert health.verdict is Verdict.SATURATED
    assert "could not keep up" in health.says


def test_a_client_without_idle_time_is_saturated() -> None:
    assert client_health(run_with(0.1, cpu_s=9.9)).verdict is Verdict.SATURATED


def test_starts_behind_their_schedule_are_noticed_in_an_open_loop_only() -> None:
    late = [record(float(at), [at + 0.5], begun=at + 0.1) for at in range(200)]
    assert client_health(run_of(late)).verdict is Verdict.SATURATED
    assert client_health(run_of(late, is_open_loop=False)).verdict is Verdict.FINE
    assert (
        client_health(run_of(late, concurrency=4)).verdict is Verdict.FINE
    )  # waiting for a place is no fault
