import pytest

from loadgen.client.records import Outcome
from loadgen.client.scrape import Scrape
from loadgen.results.timeline import bin_width_s, timeline_of
from tests.loadgen.making import record, run_of


def test_bins_count_what_happened_in_them() -> None:
    records = [
        record(0.0, [0.25, 0.75, 1.25]),
        record(1.1, [1.3, 1.9]),
        record(1.5, outcome=Outcome.REFUSED, ended=1.6),
        record(0.5, [2.9], outcome=Outcome.RESET),
    ]
    run = run_of(records, ended=6.0, scrapes=[Scrape(1.5, {"tgi_queue_size": 4.0})])
    timeline = timeline_of(run)
    assert timeline.width_s == 0.1
    assert sum(bucket.output_tokens_per_s for bucket in timeline.bins) * 0.1 == pytest.approx(6)
    assert sum(bucket.num_refused for bucket in timeline.bins) == 1
    assert sum(bucket.num_failed for bucket in timeline.bins) == 1
    assert sum(bucket.requests_per_s for bucket in timeline.bins) * 0.1 == pytest.approx(2)
    at = {round(bucket.start_s, 1): bucket for bucket in timeline.bins}
    assert at[1.5].server_waiting == 4.0
    assert at[1.2].ttft_p50_ms is None
    assert at[1.3].ttft_p50_ms == pytest.approx(200)


def test_in_flight_is_the_mean_number_of_open_requests() -> None:
    run = run_of([record(0.0, [3.0]), record(1.0, [6.0])], ended=60.0)
    flights = [bucket.in_flight for bucket in timeline_of(run).bins[:6]]
    assert flights == pytest.approx([1, 2, 2, 1, 1, 1])


@pytest.mark.parametrize(("duration", "width"), [(3, 0.1), (59, 1), (61, 2), (600, 10), (86_400, 1800)])
def test_bins_are_tidy_and_about_sixty(duration: float, width: float) -> None:
    assert bin_width_s(duration) == width


def test_a_run_without_a_token_has_a_timeline() -> None:
    run = run_of([record(0.0, outcome=Outcome.CONNECT)], ended=1.0)
    assert all(bucket.output_tokens_per_s == 0 for bucket in timeline_of(run).bins)
