"""An observer that sends each request as an OpenTelemetry trace. Needs the extra `otel`; off by default.

A trace is made when its request has ended, from what the request kept: spans carry counts and names, no
texts, no token and no name that a client gave.
"""

import asyncio
import time
from collections.abc import Callable, Iterator

import msgspec
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter
from opentelemetry.trace import Span, Status, StatusCode, set_span_in_context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from router.scheduling.moves import Move, What
from router.scheduling.observer import Observer
from router.scheduling.request import GenerationFailed, Request

_EXPORT_TIMEOUT_S = 5.0
_CALLER = TraceContextTextMapPropagator()
_STARTS = (What.STARTED, What.RESUMED, What.MOVED)

Attributes = dict[str, str | int | float]


class Part(msgspec.Struct, frozen=True):
    """A child span. Loop times in seconds."""

    name: str  # arrive | queue | prefill | decode
    start: float
    end: float
    attributes: Attributes = {}


class TraceObserver(Observer):
    """Sends traces on a thread of OpenTelemetry's; while its collector is away they are dropped."""

    def __init__(self, exporter: SpanExporter, service_name: str, unix_ns: Callable[[float], int]):
        """`unix_ns` is the Unix time, in nanoseconds, of a loop time in seconds."""
        self._provider = TracerProvider(
            resource=Resource.create({"service.name": service_name}), shutdown_on_exit=False
        )
        self._provider.add_span_processor(BatchSpanProcessor(exporter))
        self._tracer = self._provider.get_tracer("helios")
        self._unix_ns = unix_ns

    def on_finished(self, request: Request) -> None:
        line = request.timeline
        start, end = line.arrived if line.received is None else line.received, line.finished
        assert end is not None
        root = self._tracer.start_span(
            "request",
            context=_CALLER.extract({"traceparent": request.traceparent}),
            start_time=self._unix_ns(start),
            attributes=_attributes_of(request),
        )
        if isinstance(request.outcome, GenerationFailed):
            root.set_status(Status(StatusCode.ERROR, request.outcome.kind))
        for move in request.moves:
            root.add_event(move.what.value, _place(move), self._unix_ns(move.at))
        for part in parts_of(request):
            self._add(root, part)
        root.end(self._unix_ns(end))

    async def stop(self) -> None:
        """Send what waits. Takes a few seconds at most."""
        await asyncio.to_thread(self._provider.shutdown)

    def _add(self, root: Span, part: Part) -> None:
        span = self._tracer.start_span(
            part.name,
            context=set_span_in_context(root),
            start_time=self._unix_ns(part.start),
            attributes=part.attributes,
        )
        span.end(self._unix_ns(part.end))


def observer_for(endpoint: str, service_name: str) -> TraceObserver:
    """One that sends to a collector, such as http://localhost:4318. Call it in the event loop."""
    exporter = OTLPSpanExporter(f"{endpoint.rstrip('/')}/v1/traces", timeout=_EXPORT_TIMEOUT_S)
    offset_s = time.time() - asyncio.get_running_loop().time()
    return TraceObserver(exporter, service_name, lambda at: int((at + offset_s) * 1e9))


def parts_of(request: Request) -> Iterator[Part]:
    """The time of a request in order: arrive, then queue, prefill and decode, again after each return."""
    line = request.timeline
    assert line.finished is not None
    if line.received is not None:
        yield Part("arrive", line.received, line.arrived)
    waits_since, place = line.arrived, None
    for move in request.moves:
        if move.what in _STARTS:
            yield Part("queue", waits_since, move.at)
            place = move
        elif place is not None:
            yield from _runs(request, place, move.at)
            waits_since, place = move.at, None
    if place is None:
        yield Part("queue", waits_since, line.finished)
    else:
        yield from _runs(request, place, line.finished)


def _runs(request: Request, place: Move, end: float) -> Iterator[Part]:
    """Prefill up to the first token, if it came here, and decode."""
    first = request.timeline.first_token
    if first is None or first > end:
        yield Part("prefill", place.at, end, _place(place))
        return
    if first >= place.at:
        yield Part("prefill", place.at, first, _place(place))
    yield Part("decode", max(first, place.at), end, _place(place))


def _place(move: Move) -> Attributes:
    return {
        "helios.shard": move.shard,
        "helios.model": move.model,
        "helios.depth": move.depth,
        "helios.tokens": move.num_generated_tokens,
    }


def _attributes_of(request: Request) -> Attributes:
    outcome = request.outcome
    attributes: Attributes = {
        "helios.request_id": request.id,
        "helios.outcome": outcome.kind if isinstance(outcome, GenerationFailed) else str(outcome),
        "helios.preemptions": request.num_preemptions,
        "gen_ai.usage.input_tokens": request.num_prompt_tokens,
        "gen_ai.usage.output_tokens": len(request.outputs),
    }
    if request.segments:
        attributes["gen_ai.response.model"] = request.segments[-1].model
    if request.mean_exit_layer is not None:
        attributes["helios.mean_exit_layer"] = request.mean_exit_layer
    return attributes
