"""All metrics of /metrics: TGI's names, so that its dashboards work, and our own.

Does not know where the numbers come from. Durations are in seconds, by Prometheus' convention.
"""

import bisect
import itertools
import math
import re
from collections.abc import Callable, Iterable, Iterator, Sequence

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.metrics_core import HistogramMetricFamily, Metric
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

_SECONDS = tuple(round(0.0005 * 2**n, 4) for n in range(19))  # 0.5 ms .. 131 s
_TOKENS = tuple(2**n for n in range(18))  # 1 .. 131072
_SEQUENCES = tuple(2**n for n in range(11))  # 1 .. 1024
# Error types of failed generation calls; `dropped`: the client disconnected.
FAILURES = (
    "cancelled",
    "content_encoding",
    "dropped",
    "generation",
    "incomplete_generation",
    "malformed",
    "media_type",
    "model_not_found",
    "overloaded",
    "payload_too_large",
    "unauthorized",
    "validation",
)
_METHODS = ("prefill", "decode")
_DRAFTERS, _DRAFT_PLACES = ("text", "head", "exit"), 8  # as a shard's report has them
_SWAP_OUTCOMES = ("committed", "failed")
_SWAP_PHASES = ("prepare", "drain", "hold", "commit", "migrate", "gap")  # beside those of loading
# The client library adds a suffix to counters; TGI's have none.
_TGI_COUNTER = re.compile(rb"\b(tgi_\w+)_total\b")


class Metrics:
    """All metrics of a process, in their own registry."""

    def __init__(self) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self._registry = CollectorRegistry()
        ProcessCollector(registry=self._registry)  # memory, CPU time and open files of the router
        self.tgi = TgiMetrics(self._registry)
        self.helios = HeliosMetrics(self._registry)

    def render(self) -> bytes:
        """Prometheus' text format."""
        return _TGI_COUNTER.sub(rb"\1", generate_latest(self._registry))


class TgiMetrics:
    """TGI's metrics. `err` is an error_type; a step with any prefill has `method` prefill.

    TGI's metrics of filtering, concatenating and decoding batches have no counterpart.
    """

    def __init__(self, registry: CollectorRegistry):
        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(f"tgi_{name}", text, labels, registry=registry)

        def gauge(name: str, text: str) -> Gauge:
            return Gauge(f"tgi_{name}", text, registry=registry)

        def seconds(name: str, text: str, *labels: str) -> Histogram:
            return Histogram(f"tgi_{name}", text, labels, registry=registry, buckets=_SECONDS)

        def tokens(name: str, text: str) -> Histogram:
            return Histogram(f"tgi_{name}", text, registry=registry, buckets=_TOKENS)

        self.request_count = counter("request_count", "Generation calls.")
        self.request_success = counter("request_success", "Generation calls that were answered.")
        self.request_failure = counter("request_failure", "Generation calls that failed.", "err")
        self.request_duration = seconds("request_duration", "From arrival to the last token.")
        self.request_validation_duration = seconds("request_validation_duration", "Checking and encoding.")
        self.request_queue_duration = seconds("request_queue_duration", "Waiting for a batch.")
        self.request_inference_duration = seconds("request_inference_duration", "In a batch.")
        self.request_mean_time_per_token_duration = seconds(
            "request_mean_time_per_token_duration", "Time in a batch by generated tokens."
        )
        self.request_input_length = tokens("request_input_length", "Prompt tokens.")
        self.request_max_new_tokens = tokens("request_max_new_tokens", "Tokens asked for at most.")
        self.request_generated_tokens = tokens("request_generated_tokens", "Tokens generated.")
        self.queue_size = gauge("queue_size", "Requests that wait.")
        self.batch_current_size = gauge("batch_current_size", "Sequences that run, on all shards.")
        self.batch_current_max_tokens = gauge(
            "batch_current_max_tokens", "Tokens that running sequences may come to, prompts and answers."
        )
        self.batch_next_size = Histogram(
            "tgi_batch_next_size", "Sequences in a step.", registry=registry, buckets=_SEQUENCES
        )
        self.batch_inference_count = counter("batch_inference_count", "Steps sent.", "method")
        self.batch_inference_success = counter("batch_inference_success", "Steps done.", "method")
        self.batch_inference_duration = seconds("batch_inference_duration", "Steps, idle time too.", "method")
        self.batch_forward_duration = seconds("batch_forward_duration", "Steps, on the device.", "method")
        self._begin()

    @property
    def failures(self) -> dict[str, int]:
        """Failed calls by error type; those there were none of are left out."""
        samples = (sample for metric in self.request_failure.collect() for sample in metric.samples)
        return {sample.labels["err"]: int(sample.value) for sample in samples if sample.value}

    def _begin(self) -> None:
        """Start all counts at 0, so that differences are right from the start."""
        for failure in FAILURES:
            self.request_failure.labels(failure)
        for method in _METHODS:
            self.batch_inference_count.labels(method)
            self.batch_inference_success.labels(method)
            self.batch_inference_duration.labels(method)
            self.batch_forward_duration.labels(method)


class CountedHistogram(Collector):
    """A histogram by model of values that come many at a time, where the library's takes them one by one."""

    def __init__(self, name: str, text: str, bounds: Sequence[float], registry: CollectorRegistry):
        self._name = name
        self._text = text
        self._bounds = bounds
        self._counts: dict[str, list[int]] = {}  # by model: of each bucket, the last is of all larger values
        self._sums: dict[str, float] = {}
        registry.register(self)

    def observe(self, model: str, value: float, count: int) -> None:
        """Add a value so many times."""
        counts = self._counts.setdefault(model, [0] * (len(self._bounds) + 1))
        counts[bisect.bisect_left(self._bounds, value)] += count
        self._sums[model] = self._sums.get(model, 0.0) + value * count

    def collect(self) -> Iterator[Metric]:
        """The client library's form."""
        family = HistogramMetricFamily(self._name, self._text, labels=["model"])
        names = [str(floatToGoString(bound)) for bound in (*self._bounds, math.inf)]  # type: ignore[no-untyped-call]
        for model, counts in self._counts.items():
            buckets = list(zip(names, itertools.accumulate(counts), strict=True))
            family.add_metric([model], buckets, self._sums[model])
        yield family


class HeliosMetrics:
    """Our own metrics, all labelled with the model."""

    def __init__(self, registry: CollectorRegistry):
        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(f"helios_{name}", text, ("model", *labels), registry=registry)

        def gauge(name: str, text: str, *labels: str) -> Gauge:
            return Gauge(f"helios_{name}", text, ("model", *labels), registry=registry)

        def seconds(name: str, text: str, *labels: str) -> Histogram:
            return Histogram(
                f"helios_{name}_seconds", text, ("model", *labels), registry=registry, buckets=_SECONDS
            )

        self.ttft = seconds("ttft", "From a request's arrival to its first token.")
        self.itl = CountedHistogram(
            "helios_itl_seconds", "Between one token of a request and the next.", _SECONDS, registry
        )
        self.e2e = seconds("e2e", "From a request's arrival to its end.")
        self.queue = seconds("queue", "From a request's arrival to its first step.")
        self.requests = counter("requests", "Requests that ended.", "outcome")
        self.requests_running = gauge("requests_running", "Requests that a shard holds.")
        self.requests_waiting = gauge("requests_waiting", "Requests in the queue.")
        self.queued_tokens = gauge("queued_tokens", "Prompt tokens in the queue.")
        self.prompt_tokens = counter("prompt_tokens", "Prompt tokens of requests taken in.")
        self.tokens = counter("tokens", "Generated tokens, by the layer they were taken at.", "exit_layer")
        self.preemptions = counter("preemptions", "Requests that lost their blocks and began again.")
        self.replays = counter("replays", "Requests that went on after their shard's death.")
        self.kv_blocks = gauge("kv_blocks", "Blocks of KV cache.", "shard")
        self.kv_blocks_free = gauge("kv_blocks_free", "Blocks of KV cache that nothing holds.", "shard")
        self.step = seconds("step", "Time of a step on the device.", "shard")
        self.busy = counter("shard_busy_seconds", "Time in steps.", "shard")
        self.idle = counter("shard_idle_seconds", "Time between steps while there was work.", "shard")
        self.shard_deaths = counter("shard_deaths", "Shards that ended or hung.", "shard")
        self.depth = gauge("depth", "Layers that new requests run through.", "shard")
        self.loaded_models = gauge("generations", "Models that sequences run on.", "shard")
        self.shards_serving = gauge("shards_serving", "Shards that take requests.")
        self.joules = counter("joules", "Energy spent while there was work, where it is known.", "shard")
        self.swaps = counter("swaps", "Changes of depth or model, by what came of them.", "outcome")
        self.swap_phase = seconds("swap_phase", "Time of a change's phases.", "phase")
        self.constraint_check = seconds("constraint_check", "Checking a constraint in another process.")
        self.constraint_cache_hits = counter("constraint_cache_hits", "Constraints that were checked before.")
        self.constraints_refused = counter("constraints_refused", "Calls refused for a constraint.", "reason")
        self.redis_up = gauge("redis_up", "1 while telemetry is being kept.")
        self.telemetry_dropped = gauge(
            "telemetry_dropped", "Windows and decisions given up so far, as Redis was away for too long."
        )
        self._add_exits(counter, gauge)
        self._add_grammars(counter)
        self.cache_queries = counter("prefix_cache_queried_tokens", "Tokens looked for in a prefix cache.")
        self.cache_hits = counter("prefix_cache_hit_tokens", "Those found: they are not computed again.")
        self.cache_evictions = counter("prefix_cache_evicted_blocks", "Blocks whose content was given up.")
        self.cache_evicted_age = counter(
            "prefix_cache_evicted_age_seconds", "From the last use of evicted blocks, summed."
        )
        self.cache_reuses = counter("prefix_cache_reused_blocks", "Free blocks that were found again.")
        self.cache_reuse_gap = counter(
            "prefix_cache_reuse_gap_seconds", "From the last use of reused blocks, summed."
        )
        self.cache_blocks = gauge("prefix_cache_blocks", "Free blocks that hold what may be found.", "shard")

    def begin(self, model: str, outcomes: Iterable[str]) -> None:
        """Start all counts at 0; `outcomes` are the possible outcomes of a request."""
        self.itl.observe(model, 0.0, 0)
        for metric in vars(self).values():
            if isinstance(metric, Counter | Histogram) and metric._labelnames == ("model",):  # noqa: SLF001
                metric.labels(model)
        for outcome in outcomes:
            self.requests.labels(model, outcome)
        for outcome in _SWAP_OUTCOMES:
            self.swaps.labels(model, outcome)
        for phase in _SWAP_PHASES:
            self.swap_phase.labels(model, phase)
        for drafter in _DRAFTERS:
            for place in range(1, _DRAFT_PLACES + 1):
                self.drafted.labels(model, drafter, str(place))
                self.accepted.labels(model, drafter, str(place))

    def begin_shard(self, model: str, shard: str, exit_layers: Iterable[int]) -> None:
        """Start a shard's counts at 0, also those by exit layer."""
        for metric in (self.step, self.busy, self.idle, self.shard_deaths):
            metric.labels(model, shard)
        for layer in exit_layers:
            for metric in (self.tokens, self.scored_tokens, self.agreeing_tokens):
                metric.labels(model, str(layer))

    def _add_grammars(self, counter: Callable[..., Counter]) -> None:
        self.grammars_compiled = counter("grammars_compiled", "Grammars that a shard compiled.")
        self.grammars_reused = counter(
            "grammars_reused", "Answers whose grammar a shard had compiled before."
        )
        self.grammar_compile = counter("grammar_compile_seconds", "Time compiling grammars, beside steps.")
        self.grammar_masks = counter("grammar_masks", "Sets of legal tokens that were computed.")
        self.grammar_mask = counter("grammar_mask_seconds", "Time computing them, in steps.")
        self.forced = counter("forced_tokens", "Tokens that a grammar forced: no layer was run to draw them.")

    def _add_exits(self, counter: Callable[..., Counter], gauge: Callable[..., Gauge]) -> None:
        self.confidence = counter("exit_confidence", "Sum of the confidences that tokens left early with.")
        self.confident_tokens = counter("exit_confident_tokens", "Tokens in that sum.")
        self.breaches = counter("exit_breaches", "Tokens that left under their threshold.")
        of_draft = ("drafter", "place")
        self.drafted = counter("drafted_tokens", "Tokens drafted, by place in their draft.", *of_draft)
        self.accepted = counter("accepted_tokens", "Drafted tokens that the model says too.", *of_draft)
        self.draft = counter("draft_seconds", "Time making drafts.")
        self.draft_saved = gauge("draft_saved_seconds", "Time saved by drafts so far, estimated.")
        self.kv_fills = counter(
            "kv_fills", "Keys and values projected for layers not run, by token and layer."
        )
        self.exit_waiting = gauge("exit_waiting", "Sequences that wait at the first exit.", "shard")
        self.segment = counter("exit_segment_seconds", "Time between exits.", "segment")
        self.head = counter("exit_head_seconds", "Time in exit heads.")
        self.fill = counter("exit_fill_seconds", "Time filling keys and values.")
        self.scored_sequences = counter("agreement_sequences", "Answers read again at full depth.")
        self.scored_tokens = counter("agreement_tokens", "Tokens of these, by exit layer.", "exit_layer")
        self.agreeing_tokens = counter(
            "agreement_agreeing_tokens", "Those that full depth would have taken too.", "exit_layer"
        )
        self.agreement = gauge("agreement", "Share of tokens that full depth would have taken too.")
        self.agreement_low = gauge("agreement_low", "Lower end of its 95% interval.")
        self.agreement_high = gauge("agreement_high", "Upper end of its 95% interval.")
        self.agreement_floor = gauge("agreement_floor", "Agreement that the model repository asks for.")
        self.perplexity = gauge("perplexity", "Of the answers read again, under full depth.")
