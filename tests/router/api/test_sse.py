"""Streams: what is in a write, how they fail, and that a client who leaves leaves nothing behind."""

import asyncio
import json
import random
from typing import Any

import pytest
from aiohttp import ClientError, web

from router.api.sse import Streams
from router.scheduling.request import Status
from router.text.tokenizer import Token
from shard.messages import FinishReason, TokenOutput
from tests.router.fakes import make_request
from tests.router.http_fakes import Client, serving

NATIVE = ("/generate_stream", {"inputs": "Hi"})
CHAT = ("/v1/chat/completions", {"messages": [{"role": "user", "content": "Hi"}], "stream": True})
COMPLETION = ("/v1/completions", {"prompt": "Hi", "stream": True})
STREAMS = pytest.mark.parametrize(
    ("path", "body"), [NATIVE, CHAT, COMPLETION], ids=["native", "chat", "text"]
)


@STREAMS
async def test_a_failure_in_mid_stream_is_the_last_event(client: Client, path: str, body: Any) -> None:
    client.dispatcher.fails_after = 2
    *tokens, last = await client.events(path, body)
    assert len(tokens) == 2
    failure = json.loads(last)
    assert failure["error_type"] == "generation"
    message = failure["error"]["message"] if path.startswith("/v1") else failure["error"]
    assert message == "The shard died twice under this request."


@STREAMS
async def test_a_fault_of_ours_in_mid_stream_is_an_event_too(client: Client, path: str, body: Any) -> None:
    client.dispatcher.held.clear()
    events = asyncio.create_task(client.events(path, body))
    await client.dispatcher.until(lambda: bool(client.dispatcher.submitted))
    [request] = client.dispatcher.submitted
    request.put([TokenOutput(40, -0.5, 3)], None, 0.0)
    await asyncio.sleep(0.05)
    request.emit(Token(1, None, 0.0, False, 1, None))
    *_, last = await events
    assert json.loads(last)["error_type"] == "incomplete_generation"


@STREAMS
async def test_tokens_that_come_together_are_one_event_each(client: Client, path: str, body: Any) -> None:
    client.dispatcher.held.clear()
    events = asyncio.create_task(client.events(path, body))
    await client.dispatcher.until(lambda: bool(client.dispatcher.submitted))
    [request] = client.dispatcher.submitted
    ids = client.tokenizer.encode("abc")
    request.put([TokenOutput(id, -0.5, 3) for id in ids], FinishReason.LENGTH, 0.0)
    assert len([event for event in await events if event != "[DONE]"]) == 3


@STREAMS
async def test_an_end_without_a_token_ends_the_stream(client: Client, path: str, body: Any) -> None:
    client.dispatcher.held.clear()
    events = asyncio.create_task(client.events(path, body))
    await client.dispatcher.until(lambda: bool(client.dispatcher.submitted))
    [request] = client.dispatcher.submitted
    request.put([TokenOutput(client.tokenizer.encode("a")[0], -0.5, 3)], None, 0.0)
    await asyncio.sleep(0.05)
    request.put([], FinishReason.LENGTH, 0.0)
    last = json.loads([event for event in await events if event != "[DONE]"][-1])
    if path == "/generate_stream":
        assert last["generated_text"] == "a"
    else:
        assert last["choices"][0]["finish_reason"] == "length"


async def test_the_news_of_a_client_that_lags_wait_and_hold_up_no_other(client: Client) -> None:
    client.dispatcher.held.clear()
    path, body = NATIVE
    call = asyncio.create_task(client.session.post(client.url + path, json=body))
    await client.dispatcher.until(lambda: bool(client.dispatcher.submitted))
    [slow] = client.dispatcher.submitted
    batch = [TokenOutput(client.tokenizer.encode("a")[0], -0.5, 3)] * 2000
    slow.put(batch, None, 0.0)
    async with await call as lagging:
        num_tokens = len(batch)
        while not slow.events and num_tokens < 500_000:  # until what lies between holds no more
            slow.put(batch, None, 0.0)
            num_tokens += len(batch)
            await asyncio.sleep(0.001)
        assert slow.events
        other = asyncio.create_task(client.events(*COMPLETION))
        await client.dispatcher.until(lambda: len(client.dispatcher.submitted) == 2)
        client.dispatcher.submitted[1].put(batch[:3], FinishReason.LENGTH, 0.0)
        assert len(await other) == 4
        slow.put([], FinishReason.LENGTH, 0.0)
        lines = (await lagging.read()).split(b"\n\n")[:-1]
    events = [json.loads(line.removeprefix(b"data: ")) for line in lines]
    assert [event["index"] for event in events] == list(range(1, num_tokens + 1))
    assert events[-1]["generated_text"] == "a" * num_tokens


async def test_one_of_several_streams_that_fails_ends_them_all(client: Client) -> None:
    client.dispatcher.fails_after = 2
    *_, last = await client.events("/v1/completions", {"prompt": ["a", "b"], "stream": True})
    assert json.loads(last)["error_type"] == "generation"
    assert all(request.status is Status.FINISHED for request in client.dispatcher.submitted)


@STREAMS
@pytest.mark.parametrize("num_tokens", [0, 3], ids=["queued", "running"])
async def test_a_client_that_leaves_is_aborted(client: Client, path: str, body: Any, num_tokens: int) -> None:
    client.dispatcher.held.clear()
    call = asyncio.create_task(client.session.post(client.url + path, json=body))
    await client.dispatcher.until(lambda: bool(client.dispatcher.submitted))
    [request] = client.dispatcher.submitted
    if num_tokens:
        request.put([TokenOutput(40, -0.5, 3)] * num_tokens, None, 0.0)
        (await call).close()
    else:
        call.cancel()
    await client.dispatcher.until(lambda: client.dispatcher.aborted == [request])


@STREAMS
async def test_a_client_that_leaves_at_the_first_token_is_dropped_without_a_word(
    client: Client, path: str, body: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def gone(self: web.StreamResponse, request: web.BaseRequest) -> None:
        raise ConnectionResetError("Cannot write to closing transport")

    monkeypatch.setattr(web.StreamResponse, "prepare", gone)
    with pytest.raises(ClientError):
        await client.session.post(client.url + path, json=body)
    monkeypatch.undo()
    async with client.session.get(client.url + "/metrics") as response:
        counts = await response.text()
    assert 'tgi_request_failure{err="dropped"} 1.0' in counts
    assert "incomplete_generation" not in [line for line in counts.splitlines() if line.endswith(" 1.0")]
    assert not caplog.records


async def test_a_client_that_leaves_before_an_answer_is_aborted(client: Client) -> None:
    client.dispatcher.held.clear()
    body = {"prompt": ["a", "b"], "n": 2}
    call = asyncio.create_task(client.session.post(client.url + "/v1/completions", json=body))
    await client.dispatcher.until(lambda: len(client.dispatcher.submitted) == 4)
    call.cancel()
    await client.dispatcher.until(lambda: len(client.dispatcher.aborted) == 4)
    async with client.session.get(client.url + "/metrics") as response:
        assert 'tgi_request_failure{err="dropped"} 1.0' in await response.text()


async def test_many_that_leave_at_random_leave_nothing_running() -> None:
    chosen = random.Random(1)
    async with serving() as client:
        client.dispatcher.says = "x" * 400

        async def leave_early() -> None:
            path, body = chosen.choice([NATIVE, CHAT, COMPLETION])
            async with client.session.post(client.url + path, json=body) as response:
                for _ in range(chosen.randrange(4)):
                    await response.content.readline()
                response.close()

        await asyncio.gather(*(leave_early() for _ in range(60)))
        requests = client.dispatcher.submitted
        assert len(requests) == 60
        await client.dispatcher.until(lambda: all(request.status is Status.FINISHED for request in requests))


async def test_a_refusal_of_a_later_generation_aborts_the_earlier(client: Client) -> None:
    submit = client.dispatcher.submit

    def submit_twice(spec: Any) -> Any:
        if len(client.dispatcher.submitted) == 2:
            raise ValueError("no third")
        return submit(spec)

    client.dispatcher.submit = submit_twice  # type: ignore[method-assign]
    client.dispatcher.held.clear()
    status, _ = await client.post("/v1/completions", {"prompt": "a", "n": 3})
    assert status == 500
    assert len(client.dispatcher.aborted) == 2


async def test_an_opening_that_fails_leaves_nobody_reading() -> None:
    """What was begun for several generations ends with the call, not when the garbage collector comes by."""

    def opening() -> Any:
        raise RuntimeError("no format")

    nobody: Any = None
    speaking = [make_request(0), make_request(1)]
    for request in speaking:
        request.put([TokenOutput(40, -0.5, 3)], None, 0.0)
    before = asyncio.all_tasks()
    with pytest.raises(RuntimeError, match="no format"):
        await Streams(15.0).answer(nobody, speaking, opening)
    assert asyncio.all_tasks() == before
    assert all(request.on_news is None for request in speaking)


@STREAMS
async def test_a_stream_without_a_token_is_kept_alive_with_comments(path: str, body: Any) -> None:
    async with serving(sse_keep_alive_ms=100) as client:
        client.dispatcher.held.clear()
        async with client.session.post(client.url + path, json=body) as response:
            for _ in range(2):
                assert await response.content.readuntil(b"\n\n") == b": keep-alive\n\n"
            assert response.content_type == "text/event-stream"
            assert "x-helios-model" in response.headers
            client.dispatcher.held.set()
            text = (await response.read()).decode()
        events = [event for event in text.split("\n\n") if event and not event.startswith(":")]
        assert len(events) == len(await client.events(path, body))


@STREAMS
async def test_a_failure_behind_a_comment_is_an_event(path: str, body: Any) -> None:
    async with serving(sse_keep_alive_ms=100) as client:
        client.dispatcher.held.clear()
        client.dispatcher.fails_after = 0
        async with client.session.post(client.url + path, json=body) as response:
            assert await response.content.readuntil(b"\n\n") == b": keep-alive\n\n"
            client.dispatcher.held.set()
            *_, last, _ = (await response.read()).decode().split("\n\n")
        assert json.loads(last.removeprefix("data: "))["error_type"] == "generation"
        async with client.session.get(client.url + "/metrics") as response:
            assert 'tgi_request_failure{err="generation"} 1.0' in await response.text()


@STREAMS
async def test_a_pause_between_tokens_is_bridged_as_well(path: str, body: Any) -> None:
    async with serving(sse_keep_alive_ms=100) as client:
        client.dispatcher.held.clear()
        call = asyncio.create_task(client.session.post(client.url + path, json=body))
        await client.dispatcher.until(lambda: bool(client.dispatcher.submitted))
        [request] = client.dispatcher.submitted
        request.put([TokenOutput(40, -0.5, 3)], None, 0.0)
        async with await call as response:
            while (event := await response.content.readuntil(b"\n\n")) == b": keep-alive\n\n":
                pass
            assert event.startswith(b"data: ")
            assert await response.content.readuntil(b"\n\n") == b": keep-alive\n\n"


async def test_who_leaves_between_comments_is_aborted() -> None:
    async with serving(sse_keep_alive_ms=100) as client:
        client.dispatcher.held.clear()
        path, body = CHAT
        async with client.session.post(client.url + path, json=body) as response:
            await response.content.readuntil(b"\n\n")
            response.close()
        await client.dispatcher.until(lambda: len(client.dispatcher.aborted) == 1)
