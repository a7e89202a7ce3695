"""The router's events as metrics."""

import re

import pytest

from router.observers.metrics import MetricsObserver, watch_store
from router.scheduling.request import GenerationFailed, Request
from router.scheduling.step_tokens import StepTokens
from shard.messages import (
    DraftCount,
    DrafterKind,
    ExitReport,
    FinishReason,
    GrammarReport,
    OlderReport,
    Score,
    SequenceOutput,
    StepOutput,
    TokenOutput,
)
from telemetry.prometheus import FAILURES, Metrics
from telemetry.store import Store
from tests.router.fakes import make_request, make_served_model
from tests.running import ROOT

DRAFTS = {DrafterKind.TEXT: DraftCount([3, 2], [2, 2])}


class Observed:
    """An observer and what its metrics say."""

    def __init__(self) -> None:
        self._metrics = Metrics()
        self.helios = self._metrics.helios
        self.observer = MetricsObserver(self._metrics, "poet")

    def text(self) -> str:
        return self._metrics.render().decode()

    def value(self, line: str) -> float:
        text = self.text()
        found = [row for row in text.splitlines() if row.startswith(line + " ")]
        assert len(found) == 1, (line, text)
        return float(found[0].rpartition(" ")[2])


@pytest.fixture
def observed() -> Observed:
    return Observed()


def run(observed: Observed, request: Request, times: list[float]) -> None:
    """Start at 1.0 and give one token at each of `times`; the last one ends it."""
    observer = observed.observer
    observer.on_submitted(request)
    request.start(0, make_served_model(), 1.0)
    observer.on_started(request)
    for time in times:
        finish = FinishReason.LENGTH if time == times[-1] else None
        last, tokens = request.timeline.last_token, [TokenOutput(7, -1.0, 3)]
        request.put(tokens, finish, time)
        made = StepTokens(request.served_model)
        made.add(tokens, request.timeline.arrived, last, time)
        observer.on_tokens(0, made)
    observer.on_finished(request)


def test_the_times_of_a_request(observed: Observed) -> None:
    run(observed, make_request(1, arrived=0.0), [1.5, 2.0, 4.0])
    assert observed.value('helios_queue_seconds_sum{model="poet"}') == 1.0
    assert observed.value('helios_ttft_seconds_sum{model="poet"}') == 1.5
    assert observed.value('helios_itl_seconds_sum{model="poet"}') == 2.5
    assert observed.value('helios_itl_seconds_count{model="poet"}') == 2
    assert observed.value('helios_e2e_seconds_sum{model="poet"}') == 4.0
    assert observed.value("tgi_request_queue_duration_sum") == 1.0
    assert observed.value("tgi_request_inference_duration_sum") == 3.0
    assert observed.value("tgi_request_mean_time_per_token_duration_sum") == 1.0
    assert observed.value("tgi_request_generated_tokens_sum") == 3
    assert observed.value("tgi_request_input_length_sum") == 8
    assert observed.value('helios_requests_total{model="poet",outcome="length"}') == 1


def test_tokens_that_come_together_share_the_time(observed: Observed) -> None:
    tokens = [TokenOutput(7, -1.0, 3)] * 4
    made = StepTokens(make_served_model())
    made.add(tokens[:1], 0.0, None, 1.0)
    made.add(tokens, 0.0, 1.0, 3.0)
    observed.observer.on_tokens(0, made)
    assert observed.value('helios_itl_seconds_count{model="poet"}') == 4
    assert observed.value('helios_itl_seconds_sum{model="poet"}') == 2.0


def test_a_failed_request_counts_as_what_failed(observed: Observed) -> None:
    request = make_request(1)
    request.num_shard_deaths = 2
    request.fail(GenerationFailed("gone"), 1.0)
    observed.observer.on_finished(request)
    assert observed.value('helios_requests_total{model="poet",outcome="generation"}') == 1
    assert observed.value('helios_replays_total{model="poet"}') == 2
    assert observed.value("tgi_request_duration_count") == 0


def test_steps_tell_time_blocks_and_exit_layers(observed: Observed) -> None:
    tokens = [TokenOutput(1, -1.0, 3), TokenOutput(2, -1.0, 3), TokenOutput(3, -1.0, 30)]
    outputs = [SequenceOutput(id, 0, 9, [token]) for id, token in enumerate(tokens)]
    observer = observed.observer
    observer.on_shard_ready(1, make_served_model(num_blocks=20))
    step = {"preempted": [], "num_free_blocks": 5, "num_sequences": 3, "step_ms": 20.0, "idle_ms": 1.0}
    observer.on_step(1, StepOutput(1, outputs, num_tokens=3, **step))
    observer.on_step(1, StepOutput(2, outputs, num_tokens=40, **step))
    assert observed.value('helios_tokens_total{exit_layer="3",model="poet"}') == 4
    assert observed.value('helios_tokens_total{exit_layer="30",model="poet"}') == 2
    assert observed.value('helios_kv_blocks{model="poet",shard="1"}') == 20
    assert observed.value('helios_kv_blocks_free{model="poet",shard="1"}') == 5
    assert observed.value('helios_shard_busy_seconds_total{model="poet",shard="1"}') == 0.04
    assert observed.value('helios_shard_idle_seconds_total{model="poet",shard="1"}') == 0.002
    assert observed.value('tgi_batch_inference_count{method="decode"}') == 1
    assert observed.value('tgi_batch_inference_count{method="prefill"}') == 1
    assert observed.value("tgi_batch_next_size_sum") == 6


def test_every_count_is_there_before_anything_has_happened(observed: Observed) -> None:
    observed.observer.on_shard_ready(1, make_served_model(depth=30))
    for outcome in ("length", "eos_token", "stop_sequence", "cancelled", "overloaded", "generation"):
        assert observed.value(f'helios_requests_total{{model="poet",outcome="{outcome}"}}') == 0
    for failure in ("dropped", "validation", "overloaded", "incomplete_generation"):
        assert observed.value(f'tgi_request_failure{{err="{failure}"}}') == 0
    for method in ("prefill", "decode"):
        assert observed.value(f'tgi_batch_inference_count{{method="{method}"}}') == 0
        assert observed.value(f'tgi_batch_forward_duration_count{{method="{method}"}}') == 0
    for name in (
        "preemptions_total",
        "replays_total",
        "tokens_total",
        "prompt_tokens_total",
        "e2e_seconds_count",
    ):
        labels = 'exit_layer="30",model="poet"' if name == "tokens_total" else 'model="poet"'
        assert observed.value(f"helios_{name}{{{labels}}}") == 0
    for name in ("shard_deaths_total", "shard_busy_seconds_total", "step_seconds_count"):
        assert observed.value(f'helios_{name}{{model="poet",shard="1"}}') == 0
    assert observed.value('helios_swaps_total{model="poet",outcome="failed"}') == 0


def test_every_error_type_of_a_generation_call_is_counted_from_0_on() -> None:
    """Those that stand in the router's code, but for what no generation call fails with."""
    text = "".join(path.read_text() for path in (ROOT / "router").rglob("*.py"))
    kinds = set(re.findall(r'"(\w+)", (?:4\d\d|500)\b|\b(?:4\d\d|500), "(\w+)"|kind="(\w+)"', text))
    others = {"conflict", "decision_not_found", "expectation_failed", "forbidden", "http"}
    others |= {"method_not_allowed", "not_found", "request_not_found", "timeout"}
    others |= {"authentication_error", "permission_error"}  # OpenAI's words beside ours
    assert {"".join(kind) for kind in kinds} - others <= set(FAILURES)
    assert {"validation", "overloaded", "cancelled"} <= {"".join(kind) for kind in kinds}


def test_preemptions_and_deaths_are_counted(observed: Observed) -> None:
    observed.observer.on_preempted(make_request(1))
    observed.observer.on_shard_death(0, "killed")
    assert observed.value('helios_preemptions_total{model="poet"}') == 1
    assert observed.value('helios_shard_deaths_total{model="poet",shard="0"}') == 1


def test_what_early_exits_did_in_a_step(observed: Observed) -> None:
    exits = ExitReport(
        {3: 2}, confidence_sum=1.5, num_confident=2, breaches=1, drafts=DRAFTS, kv_fills=6,
        draft_ms=50.0, saved_ms=-60.0, waiting=7, segment_ms=[10.0, 20.0], head_ms=30.0, fill_ms=40.0,
    )  # fmt: skip
    for _ in range(2):
        observed.observer.on_step(1, StepOutput(1, [], [], 10, 0, exits=exits))
    values = {
        "exit_confidence_total": 3.0,
        "exit_confident_tokens_total": 4,
        "exit_breaches_total": 2,
        "draft_seconds_total": 0.1,
        "draft_saved_seconds": -0.12,
        "kv_fills_total": 12,
        "exit_head_seconds_total": 0.06,
        "exit_fill_seconds_total": 0.08,
    }
    for name, value in values.items():
        assert observed.value(f'helios_{name}{{model="poet"}}') == pytest.approx(value), name
    for name, by_place in {"drafted": (6, 4), "accepted": (4, 4)}.items():
        for place, number in enumerate(by_place, 1):
            labels = f'drafter="text",model="poet",place="{place}"'
            assert observed.value(f"helios_{name}_tokens_total{{{labels}}}") == number
    assert observed.value('helios_exit_waiting{model="poet",shard="1"}') == 7
    assert observed.value('helios_exit_segment_seconds_total{model="poet",segment="1"}') == 0.04


def test_agreement_by_the_layer_that_tokens_left_at(observed: Observed) -> None:
    request = make_request(1)
    request.put([TokenOutput(5, -1.0, 3), TokenOutput(6, -1.0, 3), TokenOutput(7, -1.0, 30)], None, 1.0)
    observed.observer.on_scored(request, [Score(5, -1.0), Score(9, -1.0), Score(7, -1.0)])
    tokens, agreeing = "helios_agreement_tokens_total", "helios_agreement_agreeing_tokens_total"
    assert observed.value(f'{tokens}{{exit_layer="3",model="poet"}}') == 2
    assert observed.value(f'{agreeing}{{exit_layer="3",model="poet"}}') == 1
    assert observed.value(f'{agreeing}{{exit_layer="30",model="poet"}}') == 1
    assert observed.value('helios_agreement_sequences_total{model="poet"}') == 1


def test_older_generations_of_a_step_count_too(observed: Observed) -> None:
    older = OlderReport(0, num_sequences=1, ms=30.0, exits=ExitReport(breaches=2))
    output = StepOutput(
        1, [], [], 10, 0, step_ms=20.0, exits=ExitReport(breaches=1), older=[older], num_blocks=40, joules=1.5
    )
    observed.observer.on_step(1, output)
    assert observed.value('helios_exit_breaches_total{model="poet"}') == 3
    assert observed.value('helios_shard_busy_seconds_total{model="poet",shard="1"}') == 0.05
    assert observed.value('helios_kv_blocks{model="poet",shard="1"}') == 40
    assert observed.value('helios_joules_total{model="poet",shard="1"}') == 1.5


def test_swaps_and_their_phases(observed: Observed) -> None:
    observed.observer.on_swap(0, "committed", {"prepare": 1500.0, "commit": 20.0})
    observed.observer.on_swap(0, "failed", {})
    for outcome in ("committed", "failed"):
        assert observed.value(f'helios_swaps_total{{model="poet",outcome="{outcome}"}}') == 1
    assert observed.value('helios_swap_phase_seconds_sum{model="poet",phase="prepare"}') == 1.5


def test_how_keeping_telemetry_goes(observed: Observed) -> None:
    store = Store(None, "poems", "one")
    watch_store(observed.helios, store, "poet")
    assert observed.value('helios_redis_up{model="poet"}') == 0
    assert observed.value('helios_telemetry_dropped{model="poet"}') == 0


def test_grammars_are_counted_on_all_models_of_a_shard(observed: Observed) -> None:
    grammar = GrammarReport(
        compiled=2, compile_ms=30.0, reused=5, masks=7, mask_ms=4.0, forced_tokens=11
    )  # fmt: skip
    older = OlderReport(0, num_sequences=1, grammar=GrammarReport(forced_tokens=4))
    observed.observer.on_step(1, StepOutput(1, [], [], 10, 0, grammar=grammar, older=[older]))
    values = {
        "grammars_compiled_total": 2,
        "grammars_reused_total": 5,
        "grammar_compile_seconds_total": 0.03,
        "grammar_masks_total": 7,
        "grammar_mask_seconds_total": 0.004,
        "forced_tokens_total": 15,
    }
    for name, value in values.items():
        assert observed.value(f'helios_{name}{{model="poet"}}') == pytest.approx(value), name


def test_forced_tokens_are_nobodys_agreement(observed: Observed) -> None:
    request = make_request(1)
    request.put([TokenOutput(5, -1.0, 30), TokenOutput(6, 0.0, 0)], None, 1.0)
    observed.observer.on_scored(request, [Score(5, -1.0), Score(6, -2.0)])
    tokens = "helios_agreement_tokens_total"
    assert observed.value(f'{tokens}{{exit_layer="30",model="poet"}}') == 1
    assert f'{tokens}{{exit_layer="0"' not in observed.text()
