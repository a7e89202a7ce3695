"""Traces of requests: one tree for each, with times that fit together, and no word of anybody's."""

import asyncio
import json
import threading
import urllib.request
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from router.__main__ import check_tracing
from router.observers.traces import Part, parts_of
from router.settings.config import Config
from router.settings.options import ConfigError
from tests.router.fakes import make_spec
from tests.router.sim_serving import shard_processes, simulated, text_of, until
from tests.running import Server


class Collector(ThreadingHTTPServer):
    """Takes what OpenTelemetry sends."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.bodies: list[tuple[str, bytes]] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def spans(self) -> list[Span]:
        requests = [ExportTraceServiceRequest.FromString(body) for _, body in self.bodies]
        return [
            span
            for request in requests
            for resource in request.resource_spans
            for scope in resource.scope_spans
            for span in scope.spans
        ]


class _Handler(BaseHTTPRequestHandler):
    server: Collector

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        self.server.bodies.append((self.path, body))
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def collector() -> Iterator[Collector]:
    server = Collector()
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def generate(server: Server, text: str, **more: str) -> None:
    asked = {"inputs": text, "parameters": {"max_new_tokens": 5, "ignore_eos": True}}
    headers = {"content-type": "application/json", "x-request-id": "s3cret-name"} | more
    request = urllib.request.Request(server.url + "/generate", json.dumps(asked).encode(), headers)
    with urllib.request.urlopen(request, timeout=60) as answer:
        assert answer.status == 200


def test_each_request_is_one_tree(
    serve: Callable[..., Server], tiny_model: Callable[[str], Path], collector: Collector
) -> None:
    settings = {"model_id": tiny_model("llama"), "device": "sim", "otlp_endpoint": collector.url}
    with serve(**settings, otlp_service_name="poems") as server:
        for _ in range(3):
            generate(server, "s3cret prompt")
        assert server.stop() == 0
    assert {path for path, _ in collector.bodies} == {"/v1/traces"}
    spans = collector.spans()
    traces = {span.trace_id for span in spans}
    assert len(traces) == 3
    for trace in traces:
        [root] = [span for span in spans if span.trace_id == trace and not span.parent_span_id]
        parts = [span for span in spans if span.parent_span_id == root.span_id]
        assert root.name == "request"
        assert [part.name for part in parts] == ["arrive", "queue", "prefill", "decode"]
        starts = [part.start_time_unix_nano for part in parts]
        ends = [part.end_time_unix_nano for part in parts]
        assert starts[0] == root.start_time_unix_nano
        assert starts[1:] == ends[:-1]
        assert ends[-1] == root.end_time_unix_nano
        attributes = {one.key: one.value for one in root.attributes}
        assert attributes["gen_ai.usage.output_tokens"].int_value == 5
        assert attributes["helios.outcome"].string_value == "length"
    sent = b"".join(body for _, body in collector.bodies)
    assert b"poems" in sent
    assert b"s3cret" not in sent


def test_a_callers_trace_goes_on(
    serve: Callable[..., Server], tiny_model: Callable[[str], Path], collector: Collector
) -> None:
    trace, caller = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
    with serve(model_id=tiny_model("llama"), device="sim", otlp_endpoint=collector.url) as server:
        generate(server, "Hi", traceparent=f"00-{trace}-{caller}-01")
        generate(server, "Hi", traceparent="nonsense")
        generate(server, "Hi", traceparent=f"00-{trace}-{caller}-00")  # the caller records nothing
        assert server.stop() == 0
    roots = [span for span in collector.spans() if span.name == "request"]
    parents = {span.trace_id.hex() == trace: span.parent_span_id.hex() for span in roots}
    assert (len(roots), parents) == (2, {True: caller, False: ""})


async def test_a_move_is_another_turn_in_the_queue_and_on_a_shard(tmp_path: Path) -> None:
    async with simulated(tmp_path, num_shards=2) as sim:
        [request] = sim.submit(make_spec(20, 200))
        reading = asyncio.create_task(text_of(request))
        await until(lambda: len(request.outputs) >= 5)
        first = request.shard
        assert first is not None
        shard_processes()[first].kill()
        await reading
        parts = list(parts_of(request))
        assert [part.name for part in parts] == ["queue", "prefill", "decode", "queue", "decode"]
        assert [part.start for part in parts[1:]] == [part.end for part in parts[:-1]]
        assert (parts[0].start, parts[-1].end) == (request.timeline.arrived, request.timeline.finished)
        assert [part.attributes.get("helios.shard") for part in parts[2:]] == [first, None, 1 - first]


async def test_a_request_that_never_started_waited(tmp_path: Path) -> None:
    async with simulated(tmp_path) as sim:
        sim.dispatcher.drain()
        sim.dispatcher.engines[0].resume()
        [request] = sim.submit(make_spec(20, 5))
        sim.dispatcher.abort(request)
        line = request.timeline
        assert line.finished is not None
        assert list(parts_of(request)) == [Part("queue", line.arrived, line.finished)]


def test_a_collector_that_is_away_disturbs_nobody(
    serve: Callable[..., Server], tiny_model: Callable[[str], Path]
) -> None:
    settings = {"model_id": tiny_model("llama"), "device": "sim", "otlp_endpoint": "http://127.0.0.1:9"}
    with serve(**settings) as server:
        generate(server, "Hi")
        assert server.stop(timeout_s=30) == 0


def test_without_opentelemetry_the_flag_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    check_tracing(Config())
    with pytest.raises(ConfigError, match=r"pip install 'helios-serve\[otel\]'"):
        check_tracing(Config(otlp_endpoint="http://localhost:4318"))
    with pytest.raises(ConfigError, match="must begin with http"):
        Config(otlp_endpoint="localhost:4318")
