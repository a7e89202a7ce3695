import asyncio
from itertools import islice

import pytest

from loadgen.client.answers import Cancel
from loadgen.client.client import Address, BadUrl, Client, Patience
from loadgen.client.dialects import Dialect
from loadgen.client.records import Flaw, Outcome, Record
from loadgen.selftest.answers import Model, Question, words
from loadgen.selftest.server import Behaviour
from tests.loadgen.making import QUICK, SHORT, answer, ask, client_of, synthetic


def text_of(question: Question) -> str:
    return "".join(said.text for said in islice(words(question, Model()), question.max_tokens))


@pytest.mark.parametrize("dialect", list(Dialect))
async def test_an_answer_comes_whole_and_in_the_order_of_time(dialect: Dialect) -> None:
    async with synthetic() as server, client_of(server) as client:
        record = await answer(client, "Hello", 12, dialect)
    assert record.outcome is Outcome.OK, record.detail
    assert record.text == text_of(Question(dialect.value, "Hello", 12, ""))
    times = list(record.token_times)
    assert times == sorted(times)
    assert record.sent is not None
    assert record.ended is not None
    assert record.sent < times[0]
    assert times[-1] <= record.ended


@pytest.mark.parametrize(
    ("fault", "outcome"),
    [
        ("stall", Outcome.STALL),
        ("reset", Outcome.RESET),
        ("close", Outcome.CLOSED),
        ("half", Outcome.HALF_EVENT),
        ("garbage", Outcome.GARBAGE),
        ("error", Outcome.ERROR_EVENT),
        ("unfinished", Outcome.UNFINISHED),
        ("endless", Outcome.ENDLESS),
        ("silent", Outcome.NO_ANSWER),
        ("status", Outcome.HTTP_ERROR),
        ("head", Outcome.GARBAGE),
    ],
)
@pytest.mark.parametrize("dialect", [Dialect.TGI, Dialect.CHAT])
async def test_each_way_to_fail_has_its_own_name_and_nothing_hangs(
    fault: str, outcome: Outcome, dialect: Dialect
) -> None:
    async with synthetic() as server, client_of(server) as client:
        async with asyncio.timeout(20):
            record = await answer(client, f"[fault:{fault}]", 8, dialect)
            after = await answer(client, "Hello", 4, dialect)
    assert record.outcome is outcome, record.detail
    assert record.outcome.is_failure
    assert record.ended is not None
    assert after.outcome is Outcome.OK


@pytest.mark.parametrize(
    ("fault", "flaw"),
    [
        ("duplicate", Flaw.DUPLICATED),
        ("gap", Flaw.GAP),
        ("after_end", Flaw.AFTER_END),
        ("mixed", Flaw.TEXT_DIFFERS),
    ],
)
async def test_flaws_of_complete_answers_are_noted(fault: str, flaw: Flaw) -> None:
    async with synthetic() as server, client_of(server) as client:
        record = await answer(client, f"[fault:{fault}]")
    assert flaw in record.flaws


async def test_an_endless_trickle_within_the_bounds_of_tokens_ends_by_time() -> None:
    slow = Behaviour(ttft_ms=5, itl_ms=100)
    async with synthetic(slow) as server, client_of(server) as client:
        record = await answer(client, "[fault:endless]", 8)
    assert record.outcome is Outcome.ENDLESS
    assert "still sending" in record.detail


async def test_a_refusal_is_told_apart_with_its_waiting_time() -> None:
    async with synthetic(Behaviour(capacity=0)) as server, client_of(server) as client:
        record = await answer(client, "Hello")
    assert record.outcome is Outcome.REFUSED
    assert not record.outcome.is_failure
    assert record.retry_after_s == 1.0
    assert "overloaded" in record.detail


async def test_no_server_is_a_sentence() -> None:
    async with Client(Address("127.0.0.1", 9), patience=SHORT) as client:
        record = await answer(client, "Hello")
        fetched = await client.fetch("GET", "/health")
    assert record.outcome is Outcome.CONNECT
    assert "cannot connect to http://127.0.0.1:9" in record.detail
    assert fetched.status == 0
    assert "cannot connect" in fetched.problem


async def test_connections_are_kept_and_reused() -> None:
    async with synthetic() as server, client_of(server) as client:
        for _ in range(5):
            assert (await answer(client, "Hello", 3)).outcome is Outcome.OK
        assert len(client.idle) == 1
        assert client.idle[0].num_exchanges == 5


async def test_a_kept_connection_that_died_is_replaced_in_silence() -> None:
    async with synthetic() as server, client_of(server) as client:
        await answer(client, "Hello", 3)
        kept = client.idle[0]
        assert kept.transport is not None
        kept.transport.close()
        await asyncio.sleep(0.02)
        record = await answer(client, "Hello", 3)
    assert record.outcome is Outcome.OK


async def test_a_server_that_hangs_up_on_a_kept_connection_gets_the_request_again() -> None:
    """The race in which the server closes just as we send."""
    connections = 0

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}")
        if connections == 1:
            await reader.readuntil(b"\r\n\r\n")  # the second request is read and not answered
        writer.close()

    listener = await asyncio.start_server(handle, "127.0.0.1", 0)
    port = listener.sockets[0].getsockname()[1]
    async with Client(Address("127.0.0.1", port), patience=SHORT) as client:
        assert (await client.fetch("GET", "/one")).is_ok
        assert (await client.fetch("GET", "/two")).is_ok
    assert connections == 2
    listener.close()


async def test_hanging_up_after_some_tokens() -> None:
    async with synthetic() as server, client_of(server) as client:
        record = Record(number=0, max_tokens=50)
        await client.stream(Dialect.TGI, "", ask("Hello", 50), record, Cancel(after_tokens=4))
        assert record.outcome is Outcome.CANCELLED
        assert len(record.token_times) == 4
        await asyncio.sleep(0.05)
        assert not server.streams


async def test_hanging_up_after_a_time() -> None:
    async with synthetic(Behaviour(ttft_ms=5, itl_ms=20)) as server, client_of(server) as client:
        record = Record(number=0, max_tokens=1000)
        await client.stream(Dialect.TGI, "", ask("Hello", 1000), record, Cancel(after_s=0.2))
    assert record.outcome is Outcome.CANCELLED
    assert 0 < len(record.token_times) < 1000


async def test_a_cancelled_task_ends_its_record_and_its_stream() -> None:
    async with synthetic(Behaviour(ttft_ms=5, itl_ms=20)) as server, client_of(server) as client:
        record = Record(number=0, max_tokens=1000)
        task = asyncio.create_task(client.stream(Dialect.TGI, "", ask("Hello", 1000), record))
        await asyncio.sleep(0.2)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert record.outcome is Outcome.CANCELLED
        assert record.ended is not None
        await asyncio.sleep(0.05)
        assert not server.streams


async def test_a_body_without_length_ends_with_its_connection() -> None:
    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.0 200 OK\r\n\r\n" + b'{"a":')
        await writer.drain()
        writer.write(b"1}")
        writer.close()

    listener = await asyncio.start_server(handle, "127.0.0.1", 0)
    port = listener.sockets[0].getsockname()[1]
    async with Client(Address("127.0.0.1", port), patience=SHORT) as client:
        assert (await client.fetch("GET", "/")).json() == {"a": 1}
    listener.close()


async def test_a_hundred_streams_at_once_do_not_mix() -> None:
    async with synthetic(QUICK) as server, client_of(server, Patience()) as client:
        records = await asyncio.gather(*(answer(client, f"prompt {i}", 10) for i in range(100)))
    texts = [text_of(Question("tgi", f"prompt {i}", 10, "")) for i in range(100)]
    assert [record.text for record in records] == texts


@pytest.mark.parametrize(
    ("text", "url"),
    [
        ("http://host:8000/v1", "http://host:8000"),
        ("host:3000", "http://host:3000"),
        ("https://api.example.com/base/v1/", "https://api.example.com:443/base"),
        ("http://[::1]:80", "http://[::1]:80"),
    ],
)
def test_a_pasted_url_is_understood(text: str, url: str) -> None:
    assert Address.parse(text).url == url


@pytest.mark.parametrize("text", ["ftp://host", "http://", "http://host:port", "http://host:99999"])
def test_what_is_no_url_is_a_sentence(text: str) -> None:
    with pytest.raises(BadUrl, match=r"URL|port"):
        Address.parse(text)
