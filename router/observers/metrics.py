"""An observer that updates Prometheus metrics."""

from collections import Counter

from router.catalog.served_model import ServedModel
from router.grammar.constraint import Reason
from router.grammar.observer import GrammarObserver
from router.scheduling.observer import Observer
from router.scheduling.request import GenerationFailed, Request
from router.scheduling.step_tokens import StepTokens
from shard.messages import (
    CacheReport,
    ExitReport,
    FinishReason,
    GrammarReport,
    Score,
    StepOutput,
)
from telemetry.prometheus import FAILURES, HeliosMetrics, Metrics
from telemetry.store import Store


class MetricsObserver(Observer):
    """Updates metrics from events. `model` is the label of every metric of ours."""

    def __init__(self, metrics: Metrics, model: str):
        self._tgi = metrics.tgi
        self._helios = metrics.helios
        self._model = model
        metrics.helios.begin(model, [*FinishReason, *FAILURES])
        self._ttft = metrics.helios.ttft.labels(model)

    def on_submitted(self, request: Request) -> None:
        self._tgi.request_input_length.observe(request.num_prompt_tokens)
        self._tgi.request_max_new_tokens.observe(request.spec.max_new_tokens)
        self._helios.prompt_tokens.labels(self._model).inc(request.num_prompt_tokens)

    def on_started(self, request: Request) -> None:
        waited = _between(request.timeline.arrived, request.timeline.started)
        self._tgi.request_queue_duration.observe(waited)
        self._helios.queue.labels(self._model).observe(waited)

    def on_tokens(self, shard: int, tokens: StepTokens) -> None:
        for ttft_s in tokens.ttfts_s:
            self._ttft.observe(ttft_s)
        for gap_s, count in tokens.gaps_s.items():
            self._helios.itl.observe(self._model, gap_s, count)

    def on_finished(self, request: Request) -> None:
        self._helios.requests.labels(self._model, _outcome(request)).inc()
        self._helios.replays.labels(self._model).inc(request.num_shard_deaths)
        if isinstance(request.outcome, FinishReason):
            self._observe_success(request)

    def on_preempted(self, request: Request) -> None:
        self._helios.preemptions.labels(self._model).inc()

    def on_step(self, shard: int, output: StepOutput) -> None:
        step_s, idle_s = output.step_ms / 1000, output.idle_ms / 1000
        self._observe_tgi_step(output, step_s, idle_s)
        helios, labels = self._helios, (self._model, str(shard))
        helios.step.labels(*labels).observe(step_s)
        helios.busy.labels(*labels).inc(step_s)
        helios.idle.labels(*labels).inc(idle_s)
        helios.kv_blocks_free.labels(*labels).set(output.num_free_blocks)
        for layer, num_tokens in _by_exit_layer(output).items():
            helios.tokens.labels(self._model, str(layer)).inc(num_tokens)
        if output.num_blocks is not None:
            helios.kv_blocks.labels(*labels).set(output.num_blocks)
        if output.cache is not None:
            self._count_cache(shard, output.cache)
        if output.joules is not None:
            helios.joules.labels(*labels).inc(output.joules)
        for older in output.older:
            helios.busy.labels(*labels).inc(older.ms / 1000)
        for grammar in (*(older.grammar for older in output.older), output.grammar):
            if grammar is not None:
                self._count_grammars(grammar)
        for exits in (*(older.exits for older in output.older), output.exits):
            if exits is not None:
                self._count_exits(shard, exits)

    def on_scored(self, request: Request, scores: list[Score]) -> None:
        self._helios.scored_sequences.labels(self._model).inc()
        for output, score in zip(request.outputs, scores, strict=True):
            if output.is_forced:
                continue
            labels = (self._model, str(output.exit_layer))
            self._helios.scored_tokens.labels(*labels).inc()
            self._helios.agreeing_tokens.labels(*labels).inc(output.id == score.choice)

    def on_shard_ready(self, shard: int, served_model: ServedModel) -> None:
        num_blocks = served_model.ready.num_blocks
        layers = {*served_model.target.config.exit_layers, served_model.ready.depth}
        self._helios.begin_shard(self._model, str(shard), layers)
        self._helios.kv_blocks.labels(self._model, str(shard)).set(num_blocks)
        self._helios.kv_blocks_free.labels(self._model, str(shard)).set(num_blocks)

    def on_swap(self, shard: int, outcome: str, phases_ms: dict[str, float]) -> None:
        self._helios.swaps.labels(self._model, outcome).inc()
        for phase, ms in phases_ms.items():
            self._helios.swap_phase.labels(self._model, phase).observe(ms / 1000)

    def on_shard_death(self, shard: int, reason: str) -> None:
        self._helios.shard_deaths.labels(self._model, str(shard)).inc()

    def _count_exits(self, shard: int, exits: ExitReport) -> None:
        helios, model = self._helios, self._model
        helios.confidence.labels(model).inc(exits.confidence_sum)
        helios.confident_tokens.labels(model).inc(exits.num_confident)
        helios.breaches.labels(model).inc(exits.breaches)
        for drafter, count in exits.drafts.items():
            for place, (drafted, accepted) in enumerate(zip(count.drafted, count.accepted, strict=True), 1):
                helios.drafted.labels(model, drafter, str(place)).inc(drafted)
                helios.accepted.labels(model, drafter, str(place)).inc(accepted)
        helios.draft.labels(model).inc(exits.draft_ms / 1000)
        helios.draft_saved.labels(model).inc(exits.saved_ms / 1000)
        helios.kv_fills.labels(model).inc(exits.kv_fills)
        helios.exit_waiting.labels(model, str(shard)).set(exits.waiting)
        helios.head.labels(model).inc(exits.head_ms / 1000)
        helios.fill.labels(model).inc(exits.fill_ms / 1000)
        for segment, ms in enumerate(exits.segment_ms):
            helios.segment.labels(model, str(segment)).inc(ms / 1000)

    def _count_cache(self, shard: int, cache: CacheReport) -> None:
        helios, model = self._helios, self._model
        helios.cache_queries.labels(model).inc(cache.queried_tokens)
        helios.cache_hits.labels(model).inc(cache.hit_tokens)
        helios.cache_evictions.labels(model).inc(cache.evicted_blocks)
        helios.cache_evicted_age.labels(model).inc(cache.evicted_age_ms / 1000)
        helios.cache_reuses.labels(model).inc(cache.reused_blocks)
        helios.cache_reuse_gap.labels(model).inc(cache.reused_gap_ms / 1000)
        helios.cache_blocks.labels(model, str(shard)).set(cache.cached_blocks)

    def _count_grammars(self, grammar: GrammarReport) -> None:
        helios, model = self._helios, self._model
        helios.grammars_compiled.labels(model).inc(grammar.compiled)
        helios.grammars_reused.labels(model).inc(grammar.reused)
        helios.grammar_compile.labels(model).inc(grammar.compile_ms / 1000)
        helios.grammar_masks.labels(model).inc(grammar.masks)
        helios.grammar_mask.labels(model).inc(grammar.mask_ms / 1000)
        helios.forced.labels(model).inc(grammar.forced_tokens)

    def _observe_success(self, request: Request) -> None:
        line, num_tokens = request.timeline, len(request.outputs)
        total = _between(line.arrived, line.finished)
        in_batch = _between(line.started or line.arrived, line.finished)
        self._tgi.request_duration.observe(total)
        self._tgi.request_inference_duration.observe(in_batch)
        self._tgi.request_mean_time_per_token_duration.observe(in_batch / max(1, num_tokens))
        self._tgi.request_generated_tokens.observe(num_tokens)
        self._helios.e2e.labels(self._model).observe(total)

    def _observe_tgi_step(self, output: StepOutput, step_s: float, idle_s: float) -> None:
        method = "prefill" if output.num_tokens > len(output.outputs) else "decode"
        self._tgi.batch_inference_count.labels(method).inc()
        self._tgi.batch_inference_success.labels(method).inc()
        self._tgi.batch_inference_duration.labels(method).observe(step_s + idle_s)
        self._tgi.batch_forward_duration.labels(method).observe(step_s)
        self._tgi.batch_next_size.observe(len(output.outputs))


class GrammarMetrics(GrammarObserver):
    """Counts what becomes of constraints."""

    def __init__(self, helios: HeliosMetrics, model: str):
        self._helios = helios
        self._model = model
        for reason in Reason:
            helios.constraints_refused.labels(model, reason)

    def on_compiled(self, seconds: float) -> None:
        self._helios.constraint_check.labels(self._model).observe(seconds)

    def on_cache_hit(self) -> None:
        self._helios.constraint_cache_hits.labels(self._model).inc()

    def on_refused(self, reason: Reason) -> None:
        self._helios.constraints_refused.labels(self._model, reason).inc()


def watch_store(helios: HeliosMetrics, store: Store, model: str) -> None:
    """Let metrics read the telemetry store's health when scraped."""
    helios.redis_up.labels(model).set_function(lambda: store.is_ok)
    helios.telemetry_dropped.labels(model).set_function(lambda: store.num_dropped)


def _between(start: float, end: float | None) -> float:
    return 0.0 if end is None else end - start


def _outcome(request: Request) -> str:
    match request.outcome:
        case GenerationFailed(kind=kind):
            return kind
        case outcome:
            return str(outcome)


def _by_exit_layer(output: StepOutput) -> dict[int, int]:
    return Counter([token.exit_layer for sequence in output.outputs for token in sequence.tokens])
