import asyncio

from loadgen.client.scrape import Scrape, Scraper, mean_queue_ms, parse_metrics
from tests.loadgen.making import client_of, synthetic

METRICS = """# HELP vllm:num_requests_running running
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{engine="0",model_name="a b"} 3.0
vllm:num_requests_running{engine="1",model_name="a b"} 2.0
vllm:request_queue_time_seconds_bucket{le="0.3"} 7.0
vllm:request_queue_time_seconds_count{engine="0"} 8.0
vllm:request_queue_time_seconds_sum{engine="0"} 2.0
python_gc_objects_collected_total{generation="0"} 5.0
process_resident_memory_bytes 1.5e+08
vllm:odd{x="y"} not-a-number
"""


def test_known_families_are_summed_over_their_labels() -> None:
    values = parse_metrics(METRICS)
    assert values["vllm:num_requests_running"] == 5
    assert values["process_resident_memory_bytes"] == 1.5e8
    assert set(values) == {
        "vllm:num_requests_running",
        "vllm:request_queue_time_seconds_count",
        "vllm:request_queue_time_seconds_sum",
        "process_resident_memory_bytes",
    }


def test_meanings_are_found_under_any_server_s_name() -> None:
    scrape = Scrape(0.0, parse_metrics(METRICS))
    assert (scrape.get("running"), scrape.get("waiting"), scrape.get("resident_bytes")) == (5, None, 1.5e8)
    assert Scrape(0.0, {"tgi_queue_size": 4.0}).get("waiting") == 4


def test_queue_time_is_that_of_requests_between_two_readings() -> None:
    last = Scrape(1.0, parse_metrics(METRICS))
    assert mean_queue_ms(Scrape(0.0, {}), last) == 250
    assert mean_queue_ms(last, last) is None


async def test_readings_are_taken_beside_a_run() -> None:
    async with synthetic() as server, client_of(server) as client:
        scraper = Scraper(client, period_s=0.02)
        task = asyncio.create_task(scraper.run())
        await asyncio.sleep(0.2)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    assert len(scraper.scrapes) >= 3
    assert scraper.scrapes[0].get("running") == 0
