"""What /metrics shows."""

import pytest
from prometheus_client.parser import text_string_to_metric_families

from telemetry.prometheus import Metrics

# https://huggingface.co/docs/text-generation-inference/reference/metrics, less what has no counterpart
TGI_NAMES = """tgi_batch_current_max_tokens tgi_batch_current_size tgi_batch_forward_duration
    tgi_batch_inference_count tgi_batch_inference_duration tgi_batch_inference_success tgi_batch_next_size
    tgi_queue_size tgi_request_count tgi_request_duration tgi_request_failure tgi_request_generated_tokens
    tgi_request_inference_duration tgi_request_input_length tgi_request_max_new_tokens
    tgi_request_mean_time_per_token_duration tgi_request_queue_duration tgi_request_success
    tgi_request_validation_duration"""


@pytest.fixture
def metrics() -> Metrics:
    return Metrics()


def test_tgis_names_are_all_there(metrics: Metrics) -> None:
    text = metrics.render().decode()
    for name in TGI_NAMES.split():
        assert f"# TYPE {name} " in text, name


def test_tgis_counters_have_no_suffix_and_ours_have_one(metrics: Metrics) -> None:
    metrics.tgi.request_failure.labels("validation").inc()
    metrics.helios.preemptions.labels("poet").inc(2)
    text = metrics.render().decode()
    assert '\ntgi_request_failure{err="validation"} 1.0\n' in text
    assert '\nhelios_preemptions_total{model="poet"} 2.0\n' in text


def test_all_of_ours_have_a_model_label(metrics: Metrics) -> None:
    metrics.helios.itl.observe("one", 0.01, 1)
    for name, metric in vars(metrics.helios).items():
        if name == "itl":
            [family] = metric.collect()
            assert all(sample.labels["model"] == "one" for sample in family.samples)
        else:
            assert metric._labelnames[0] == "model"  # noqa: SLF001


def test_the_text_is_prometheus_format(metrics: Metrics) -> None:
    metrics.helios.ttft.labels("poet").observe(0.25)
    families = {family.name: family for family in text_string_to_metric_families(metrics.render().decode())}
    samples = {sample.name: sample.value for sample in families["helios_ttft_seconds"].samples}
    assert samples["helios_ttft_seconds_sum"] == 0.25
    assert not any(name.endswith("_created") for name in families)


def test_the_router_tells_its_own_memory(metrics: Metrics) -> None:
    families = {family.name: family for family in text_string_to_metric_families(metrics.render().decode())}
    assert families["process_resident_memory_bytes"].samples[0].value > 1_000_000


def test_two_servers_in_one_process_count_apart() -> None:
    first, second = Metrics(), Metrics()
    first.tgi.request_count.inc()
    assert b"tgi_request_count 1.0" in first.render()
    assert b"tgi_request_count 0.0" in second.render()


def test_differences_are_right_from_the_first_swap_on(metrics: Metrics) -> None:
    metrics.helios.begin("poet", ["length"])
    text = metrics.render().decode()
    assert 'helios_swaps_total{model="poet",outcome="failed"} 0.0' in text
    for phase in ("prepare", "hold", "commit", "gap"):
        assert f'helios_swap_phase_seconds_count{{model="poet",phase="{phase}"}} 0.0' in text
