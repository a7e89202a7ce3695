"""Connections that keep the server waiting, are too many, or speak no HTTP."""

import asyncio
import contextlib
import json
import logging
import socket
import struct
from collections.abc import AsyncIterator
from typing import Any

import pytest

from router.api.connections import Connection, client_of
from tests.router.http_fakes import Client, serving

BODY = b'{"inputs": "SECRET-PROMPT", "parameters": {"max_new_tokens": 4}}'
KEY = b"Host: here\r\nAuthorization: Bearer SECRET-KEY\r\nContent-Type: application/json\r\n"
POST = b"POST /generate HTTP/1.1\r\n" + KEY
LENGTH = b"Content-Length: %d\r\n" % len(BODY)
CHUNKED = b"Transfer-Encoding: chunked\r\n\r\n"
CALL = POST + LENGTH + b"\r\n" + BODY
PATIENT_S = 20


class Raw:
    """A raw socket: sends any bytes, reads when told to."""

    def __init__(self, client: Client, **options: Any):
        host, port = client.url.removeprefix("http://").split(":")
        self._address = host, int(port)
        self._options = options

    async def __aenter__(self) -> "Raw":
        sock = socket.socket()
        sock.setblocking(False)
        if "receive_bytes" in self._options:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, self._options["receive_bytes"])
        await asyncio.get_running_loop().sock_connect(sock, self._address)
        self.reader, self.writer = await asyncio.open_connection(sock=sock, limit=2)
        return self

    async def __aexit__(self, *_: object) -> None:
        self.writer.close()
        with contextlib.suppress(ConnectionError, TimeoutError):
            async with asyncio.timeout(10):
                await self.writer.wait_closed()

    async def send(self, *parts: bytes) -> None:
        """Send each part in its own packet."""
        for part in parts:
            self.writer.write(part)
            await self.writer.drain()
            await asyncio.sleep(0.05)

    async def answer(self) -> tuple[int, dict[str, Any]]:
        """Status and body of the next answer; (0, {}) when the connection was closed without one."""
        async with asyncio.timeout(PATIENT_S):
            head = b""
            while not head.endswith(b"\r\n\r\n"):
                with contextlib.suppress(ConnectionError):
                    byte = await self.reader.read(1)
                    head += byte
                    if byte:
                        continue
                return 0, {}
            lines = head.decode().lower().splitlines()
            [length] = [int(line.split(":")[1]) for line in lines if line.startswith("content-length")]
            body = await self.reader.readexactly(length)
        return int(head.split()[1]), json.loads(body) if body else {}

    async def ends(self) -> None:
        """Wait until the server closes the connection."""
        async with asyncio.timeout(PATIENT_S):
            with contextlib.suppress(ConnectionError):
                while await self.reader.read(65_536):
                    pass


@contextlib.asynccontextmanager
async def hasty(**settings: Any) -> AsyncIterator[Client]:
    """A server that waits for its clients for a quarter of a second only."""
    async with serving(**{"client_timeout_ms": 250, "keep_alive_ms": 30_000, **settings}) as client:
        yield client


MALFORMED = {
    "chunk-size": [POST + CHUNKED + b"ZZ\r\n" + BODY],
    "chunk-too-long": [POST + CHUNKED + b"5\r\n" + BODY],
    "chunk-overflow": [POST + CHUNKED + b"f" * 30 + b"\r\n" + BODY],
    "late-chunk": [POST + CHUNKED + b"5\r\nabcde\r\n", b"SECRET-PROMPT\r\n"],
    "late-trailer": [POST + CHUNKED + b"5\r\nabcde\r\n0\r\n", b"X: SECRET-KEY\x00\r\n\r\n"],
    "two-lengths": [POST + LENGTH + b"Content-Length: 3\r\n\r\n" + BODY],
    "length-and-chunks": [POST + LENGTH + CHUNKED + BODY],
    "negative-length": [POST + b"Content-Length: -5\r\n\r\n" + BODY],
    "no-host": [b"GET /info HTTP/1.1\r\nAuthorization: Bearer SECRET-KEY\r\n\r\n"],
    "tls": [b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"x" * 40],
    "null": [POST + b"X: SECRET-KEY\x00\r\n" + LENGTH + b"\r\n" + BODY],
    "http2": [b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"],
    "http3": [b"GET /info HTTP/3.0\r\n" + KEY + b"\r\n"],
    "method": [b"SECRET@ /generate HTTP/1.1\r\n" + KEY + b"\r\n"],
    "url": [b"GET http://[::SECRET-KEY HTTP/1.1\r\n" + KEY + b"\r\n"],
    "long-line": [b"GET /" + b"SECRET-KEY" * 1000 + b" HTTP/1.1\r\n" + KEY + b"\r\n"],
    "long-header": [b"GET /info HTTP/1.1\r\nHost: x\r\nX: " + b"SECRET-KEY" * 1000 + b"\r\n\r\n"],
    "headers": [b"GET /info HTTP/1.1\r\n" + KEY + b"X: SECRET-KEY\r\n" * 500 + b"\r\n"],
    "no-colon": [POST + b"SECRET-KEY\r\n" + LENGTH + b"\r\n" + BODY],
    "folded": [POST + b"X: a\r\n SECRET-KEY\r\n" + LENGTH + b"\r\n" + BODY],
    "bare-lf": [b"GET /info HTTP/1.1\nHost: x\nAuthorization: Bearer SECRET-KEY\n\n"],
}


@pytest.mark.parametrize("parts", MALFORMED.values(), ids=MALFORMED)
async def test_what_is_no_http_is_400_in_json_and_its_content_is_not_logged(
    client: Client, parts: list[bytes], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    async with Raw(client) as raw:
        await raw.send(*parts)
        status, answer = await raw.answer()
        await raw.ends()
    assert (status, answer["error_type"]) == (400, "malformed")
    records = [record for record in caplog.records if record.name != "asyncio"]
    assert len(records) <= 1
    assert "SECRET" not in caplog.text
    assert "Traceback" not in caplog.text
    assert (await client.post("/generate", {"inputs": "Hi"}))[0] == 200


async def test_an_unknown_expectation_is_417_in_json(client: Client) -> None:
    for path in ("/generate", "/nowhere"):
        async with client.session.post(client.url + path, json={}, headers={"Expect": "SECRET"}) as response:
            assert response.status == 417
            assert (await response.json())["error_type"] == "expectation_failed"


async def test_garbage_behind_a_call_does_not_spoil_its_answer(client: Client) -> None:
    client.dispatcher.held.clear()
    async with Raw(client) as raw:
        await raw.send(CALL, b"SECRET-KEY garbage\r\n\r\n")
        client.dispatcher.held.set()
        assert await raw.answer() == (200, {"generated_text": "Hell"})
        assert (await raw.answer())[0] == 400
        await raw.ends()


@pytest.mark.parametrize(
    "parts",
    [
        [b"G"],
        [b"POST /generate HTTP/1.1\r\nHost: here\r\n"],
        [POST + LENGTH + b"\r\n" + BODY[:10]],
        [POST + LENGTH + b"\r\n"],
        [POST + CHUNKED + b"5\r\nabcde\r\n"],
        [CALL, b"POST /gen"],
        [CALL, POST + LENGTH + b"\r\n" + BODY[:10]],
    ],
    ids=["byte", "head", "body", "no-body", "chunk", "second-head", "second-body"],
)
async def test_a_call_that_never_becomes_whole_is_ended(parts: list[bytes]) -> None:
    async with hasty() as client, Raw(client) as raw:
        await raw.send(parts[0])
        if len(parts) > 1:
            assert (await raw.answer())[0] == 200
            await raw.send(parts[1])
        status, answer = await raw.answer()
        assert (status, answer["error_type"]) == (408, "timeout")
        await raw.ends()
        assert client.dispatcher.submitted == client.dispatcher.submitted[: len(parts) - 1]


async def test_a_head_that_began_while_another_call_was_answered_is_ended_too() -> None:
    async with hasty() as client, Raw(client) as raw:
        client.dispatcher.held.clear()
        await raw.send(CALL, b"POST /gen")
        client.dispatcher.held.set()
        assert (await raw.answer())[0] == 200
        assert (await raw.answer())[0] == 408
        await raw.ends()


async def test_a_call_that_comes_slowly_but_steadily_is_answered() -> None:
    """Four times as long as a client may keep silent."""
    async with hasty() as client, Raw(client) as raw:
        body = BODY + b" " * 3000
        await raw.send(POST + b"Content-Length: %d\r\n\r\n" % len(body))
        for start in range(0, len(body), 150):
            await raw.send(body[start : start + 150])
        assert (await raw.answer())[0] == 200


async def test_a_call_that_drips_is_not_kept_up_for_ever() -> None:
    async with hasty() as client, Raw(client) as raw:
        await raw.send(POST + b"Content-Length: 2000\r\n\r\n")
        ending = asyncio.create_task(raw.answer())
        for _ in range(200):
            if ending.done():
                break
            with contextlib.suppress(ConnectionError):
                await raw.send(b"a")
        assert (await ending)[0] in (0, 408)


@pytest.mark.parametrize("num_tokens", [100, 400], ids=["written", "being-written"])
async def test_a_client_that_never_reads_is_cut_off(num_tokens: int, monkeypatch: pytest.MonkeyPatch) -> None:
    made = Connection.connection_made

    def made_small(self: Connection, transport: asyncio.BaseTransport) -> None:
        transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        made(self, transport)

    monkeypatch.setattr(Connection, "connection_made", made_small)
    async with hasty() as client, Raw(client, receive_bytes=4096) as raw:
        client.dispatcher.says = "x" * num_tokens
        asked = {"inputs": "Hi", "parameters": {"max_new_tokens": num_tokens, "top_n_tokens": 5}}
        body = json.dumps(asked).encode()
        head = b"POST /generate_stream HTTP/1.1\r\n" + KEY
        await raw.send(head + b"Content-Length: %d\r\n\r\n" % len(body) + body)
        await asyncio.sleep(1.5)
        monkeypatch.undo()
        await raw.ends()
        async with client.session.get(client.url + "/metrics") as response:
            was_dropped = 'tgi_request_failure{err="dropped"} 1.0' in await response.text()
    assert was_dropped is (num_tokens == 400)


async def test_a_client_that_reads_a_byte_at_a_time_gets_all_of_it() -> None:
    async with hasty() as client, Raw(client) as raw:
        await raw.send(CALL.replace(b"/generate ", b"/generate_stream "))
        got = b""
        async with asyncio.timeout(PATIENT_S):
            while not got.endswith(b"0\r\n\r\n"):
                got += await raw.reader.readexactly(1)
                await asyncio.sleep(0.003)
        assert b'"generated_text":"Hell"' in got


async def test_a_connection_without_a_call_is_closed_in_time() -> None:
    async with hasty(keep_alive_ms=300) as client, Raw(client) as unused, Raw(client) as used:
        await used.send(CALL)
        assert (await used.answer())[0] == 200
        assert await used.answer() == (0, {})
        assert await unused.answer() == (0, {})


async def test_a_generation_may_take_longer_than_clients_may() -> None:
    async with hasty(keep_alive_ms=300) as client, Raw(client) as raw:
        client.dispatcher.held.clear()
        await raw.send(CALL)
        await asyncio.sleep(1.5)
        client.dispatcher.held.set()
        assert (await raw.answer())[0] == 200


async def test_at_the_bound_those_that_only_wait_give_way_and_those_at_work_do_not() -> None:
    async with contextlib.AsyncExitStack() as stack:
        client = await stack.enter_async_context(
            serving(max_connections=6, max_connections_per_address=6, client_timeout_ms=100_000)
        )
        client.dispatcher.held.clear()
        busy = [await stack.enter_async_context(Raw(client)) for _ in range(2)]
        for raw in busy:
            await raw.send(CALL)
        idle = [await stack.enter_async_context(Raw(client)) for _ in range(4)]
        await idle[0].send(b"GET /li")
        await asyncio.sleep(1.2)  # until they were seen to wait
        late = [await stack.enter_async_context(Raw(client)) for _ in range(2)]
        for raw in late:
            await raw.send(b"GET /livez HTTP/1.1\r\nHost: here\r\n\r\n")
            assert (await raw.answer())[0] == 200
        client.dispatcher.held.set()
        for raw in busy:
            assert (await raw.answer())[0] == 200


@pytest.mark.parametrize(
    "bounds", [{"max_connections": 3}, {"max_connections": 99, "max_connections_per_address": 3}]
)
async def test_when_all_are_at_work_a_further_connection_is_told_so(bounds: dict[str, int]) -> None:
    async with contextlib.AsyncExitStack() as stack:
        client = await stack.enter_async_context(serving(**bounds))
        client.dispatcher.held.clear()
        busy = [await stack.enter_async_context(Raw(client)) for _ in range(3)]
        for raw in busy:
            await raw.send(CALL)
        async with Raw(client) as late:
            status, answer = await late.answer()
        assert (status, answer["error_type"]) == (429, "overloaded")
        client.dispatcher.held.set()
        for raw in busy:
            assert (await raw.answer())[0] == 200
        await busy[0].__aexit__()
        await asyncio.sleep(0.1)
        assert (await client.get("/info"))[0] == 200


async def test_a_client_that_resets_in_the_middle_of_its_body_leaves_no_trace(
    client: Client, caplog: pytest.LogCaptureFixture
) -> None:
    async with Raw(client) as raw:
        await raw.send(POST + LENGTH + b"\r\n" + BODY[:10])
        sock = raw.writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        raw.writer.transport.abort()
    assert (await client.post("/generate", {"inputs": "Hi"}))[0] == 200
    assert not caplog.records


@pytest.mark.parametrize(
    ("peername", "client"),
    [
        (("10.1.2.3", 80), "10.1.2.3"),
        (("::ffff:10.1.2.3", 80, 0, 0), "10.1.2.3"),
        (("2001:db8:1:2:3:4:5:6", 80, 0, 0), "2001:db8:1:2::/64"),
        (("2001:db8:1:2::9", 80, 0, 0), "2001:db8:1:2::/64"),
        (("::1", 80, 0, 0), "::/64"),
        ("/run/socket", ""),
        (None, ""),
    ],
)
def test_a_client_is_an_address_or_its_network(peername: Any, client: str) -> None:
    assert client_of(peername) == client
