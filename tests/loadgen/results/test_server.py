import pytest

from loadgen.client.scrape import Scrape
from loadgen.load.run import Run
from loadgen.results.server import server_says
from tests.loadgen.making import record, run_of


def scraped(*values: dict[str, float]) -> Run:
    return run_of([record(0.0, [1.0])], scrapes=[Scrape(float(at), found) for at, found in enumerate(values)])


def test_extremes_and_differences_over_the_run() -> None:
    found = server_says(
        scraped(
            {
                "vllm:num_requests_running": 3,
                "vllm:num_preemptions_total": 5,
                "helios_drafted_tokens_total": 10,
                "vllm:kv_cache_usage_perc": 0.4,
            },
            {
                "vllm:num_requests_running": 9,
                "vllm:num_preemptions_total": 7,
                "helios_drafted_tokens_total": 30,
                "vllm:kv_cache_usage_perc": 0.2,
            },
        )
    )
    assert (found.most_running, found.preemptions, found.most_kv_usage) == (9, 2, 0.4)
    assert (found.drafted, found.accepted) == (20, None)
    assert found.most_waiting is None


def test_kv_usage_may_be_told_as_blocks() -> None:
    values = [{"helios_kv_blocks": 100.0, "helios_kv_blocks_free": free} for free in (90.0, 25.0, 60.0)]
    assert server_says(scraped(*values)).most_kv_usage == pytest.approx(0.75)


def test_a_server_may_be_silent() -> None:
    assert server_says(scraped()).is_silent
    assert not server_says(scraped({"tgi_queue_size": 0.0})).is_silent
