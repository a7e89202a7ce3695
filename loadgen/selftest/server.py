"""A synthetic server with known delays and answers, which records when every byte was sent.

Speaks the three dialects, tokenising, metrics and `/ops`. One process, plain asyncio: a write goes to the
socket at once, so that the time recorded before it is exact. `GET /truth` returns the records.
"""

import asyncio
import math
import random
import socket
import struct
from array import array
from time import monotonic
from typing import Any

import httptools
import msgspec

from loadgen.selftest.answers import Question
from loadgen.selftest.faults import Gesture, Script, script
from loadgen.selftest.operations import Operations, encode

STREAMS = ("/generate_stream", "/v1/completions", "/v1/chat/completions")
REASONS = {
    200: "OK",
    202: "Accepted",
    404: "Not Found",
    409: "Conflict",
    422: "Unprocessable",
    429: "Too Many",
    500: "Bad",
}
HEAD = (
    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n"
    b"x-helios-model: %b\r\nx-helios-version: %b\r\n\r\n"
)


class Behaviour(msgspec.Struct, frozen=True, kw_only=True):
    """How the server behaves."""

    ttft_ms: float = 20.0
    itl_ms: float = 10.0
    jitter: float = 0.2  # standard deviation of every delay, relative to it
    step_ms: float = 0.0  # > 0: all streams send together, at multiples of this
    capacity: int = 1_000_000  # streams; more are refused with 429
    swap_ms: float = 200.0
    kind: str = "helios"  # helios | vllm: decides which extra routes exist
    seed: int = 0


class Truth(msgspec.Struct):
    """When a stream was requested and each of its events was sent, in seconds of `time.monotonic()`."""

    received: float
    sent: list[float] = []


class Stream:
    """One running answer."""

    def __init__(self, server: "Server", transport: asyncio.Transport, question: Question):
        self.truth = Truth(monotonic())
        self._server = server
        self._transport = transport
        self._script: Script = script(question, server.operations.model)
        self._due = self.truth.received
        self._sent = array("d")
        self._wait(server.behaviour.ttft_ms)

    def _wait(self, delay_ms: float) -> None:
        behaviour = self._server.behaviour
        factor = max(0.1, self._server.random.gauss(1.0, behaviour.jitter))
        self._due = max(self._due + delay_ms * factor / 1e3, self._server.operations.held_until)
        if behaviour.step_ms:
            self._due = math.ceil(self._due * 1e3 / behaviour.step_ms) * behaviour.step_ms / 1e3
        self._timer = self._server.loop.call_at(self._due, self._speak)

    def _speak(self) -> None:
        match item := next(self._script):
            case bytes():
                self._send(item)
                self._wait(self._server.behaviour.itl_ms)
            case Gesture.END:
                self._transport.write(b"0\r\n\r\n")
                self._server.end(self)
            case Gesture.RESET:
                connection = self._transport.get_extra_info("socket")
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                self._transport.abort()
            case Gesture.CLOSE:
                self._transport.close()
            case Gesture.STALL:
                pass

    def _send(self, event: bytes) -> None:
        self._sent.append(monotonic())
        self._transport.write(b"%x\r\n%b\r\n" % (len(event), event))

    def stop(self) -> None:
        self._timer.cancel()
        self.truth.sent = self._sent.tolist()


class Link(asyncio.Protocol):
    """One client's connection."""

    def __init__(self, server: "Server"):
        self._server = server
        self._parser = httptools.HttpRequestParser(self)
        self._path = ""
        self._headers: dict[str, str] = {}
        self._body = b""
        self.stream: Stream | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def on_url(self, url: bytes) -> None:
        self._path, self._headers, self._body = url.decode("latin-1"), {}, b""

    def on_header(self, name: bytes, value: bytes) -> None:
        self._headers[name.decode("latin-1").lower()] = value.decode("latin-1")

    def on_body(self, data: bytes) -> None:
        self._body += data

    def on_message_complete(self) -> None:
        method = self._parser.get_method().decode("latin-1")
        self._server.handle(self, method, self._path, self._body, self._headers)

    def connection_lost(self, error: Exception | None) -> None:
        if self.stream is not None:
            self._server.end(self.stream)

    def answer(self, status: int, body: bytes, kind: str = "application/json", extra: str = "") -> None:
        head = (
            f"HTTP/1.1 {status} {REASONS[status]}\r\ncontent-type: {kind}\r\ncontent-length: {len(body)}\r\n"
        )
        self.transport.write(f"{head}{extra}\r\n".encode() + body)


class Server:
    """The whole server; after `start` it listens on `port`."""

    def __init__(self, behaviour: Behaviour):
        self.behaviour = behaviour
        self.random = random.Random(behaviour.seed)
        self.operations = Operations(behaviour.swap_ms)
        self.truths: dict[str, Truth] = {}
        self.streams: dict[Stream, str] = {}
        self._num_refused = 0

    async def start(self, port: int = 0) -> None:
        self.loop = asyncio.get_running_loop()
        self._listener = await self.loop.create_server(lambda: Link(self), "127.0.0.1", port, backlog=4096)
        self.port: int = self._listener.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        self._listener.close()
        for stream in list(self.streams):
            self.end(stream)

    def handle(self, link: Link, method: str, path: str, body: bytes, headers: dict[str, str]) -> None:
        path, _, _ = path.partition("?")
        if method == "POST" and path in STREAMS:
            self._begin_stream(link, path, body, headers)
        elif path == "/metrics":
            link.answer(200, self._metrics(), "text/plain")
        else:
            status, value = self._reply(method, path, msgspec.json.decode(body) if body else None)
            link.answer(status, encode(value))

    def end(self, stream: Stream) -> None:
        name = self.streams.pop(stream, None)
        if name is not None:
            stream.stop()
            self.truths[name] = stream.truth

    def _begin_stream(self, link: Link, path: str, body: bytes, headers: dict[str, str]) -> None:
        name = headers.get("x-request-id", str(len(self.truths)))
        try:
            question = Question.read(path, msgspec.json.decode(body), name)
        except (KeyError, msgspec.DecodeError) as error:
            invalid = {"error": f"Input validation error: {error}", "error_type": "validation"}
            return link.answer(422, encode(invalid))
        if len(self.streams) >= self.behaviour.capacity:
            self._num_refused += 1
            refusal = {"error": "Model is overloaded", "error_type": "overloaded"}
            return link.answer(429, encode(refusal), extra="retry-after: 1\r\n")
        return self._answer(link, question)

    def _answer(self, link: Link, question: Question) -> None:
        """Begin a stream, or a fault that precedes one."""
        model = self.operations.model
        match question.fault:
            case "silent":
                pass
            case "status":
                link.answer(500, encode({"error": {"message": "it broke", "type": "internal"}}))
            case "head":
                link.transport.write(b"SSH-2.0-OpenSSH_9.2\r\n\r\n")
            case _:
                link.transport.write(HEAD % (model.name.encode(), model.version.encode()))
                link.stream = Stream(self, link.transport, question)
                self.streams[link.stream] = question.seed

    def _reply(self, method: str, path: str, body: Any) -> tuple[int, Any]:
        model = self.operations.model
        is_helios = self.behaviour.kind == "helios"
        match method, path:
            case "GET", "/health":
                return 200, {}
            case "GET", "/truth":
                return 200, self.truths
            case "GET", "/info" if is_helios:
                return 200, {"model_id": "synthetic", "version": "1.0", "num_layers": 30}
            case "GET", "/version" if not is_helios:
                return 200, {"version": "0.0"}
            case "GET", "/v1/models":
                return 200, {"data": [{"id": "synthetic", "root": model.name}]}
            case "POST", "/tokenize" if is_helios or "prompt" in body:
                return 200, _tokenize(body)
            case "POST", "/chat_tokenize" if is_helios:
                text = "\n".join(f"<{m['role']}> {m['content']}" for m in body["messages"])
                return 200, {"templated_text": text + "\n<assistant>"}
            case "GET", "/ops/state" if is_helios:
                return 200, self.operations.state(len(self.streams))
            case "POST", "/ops/swap" if is_helios:
                return self.operations.swap(body)
            case "GET", _ if is_helios and path.startswith("/ops/decisions"):
                return self.operations.find(path)
        return 404, {"error": f"no route {method} {path}"}

    def _metrics(self) -> bytes:
        running = len(self.streams)
        lines = ["vllm:num_requests_running %d", "tgi_batch_current_size %d", "helios_requests_running %d"]
        lines = [line % running for line in lines]
        return "\n".join([*lines, f"tgi_request_failure {self._num_refused}", ""]).encode()


def _tokenize(body: dict[str, Any]) -> Any:
    """One token per word, and one in front, as for models with a leading special token."""
    count = len(str(body.get("inputs") or body.get("prompt")).split()) + 1
    if "prompt" in body:
        return {"count": count, "max_model_len": 100_000, "tokens": list(range(count))}
    return [{"id": id, "text": "", "start": 0, "stop": 0} for id in range(count)]
