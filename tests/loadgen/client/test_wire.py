import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadgen.client.wire import BadAnswer, ChunkedBody, EventSplitter, SizedBody, body_of, parse_head


def chunked(payloads: list[bytes]) -> bytes:
    return b"".join(b"%x\r\n%b\r\n" % (len(p), p) for p in payloads) + b"0\r\n\r\n"


def cut(data: bytes, places: list[int]) -> list[bytes]:
    edges = [0, *sorted(place % (len(data) + 1) for place in places), len(data)]
    return [data[low:high] for low, high in itertools.pairwise(edges)]


@given(st.lists(st.binary(min_size=1, max_size=40), max_size=6), st.lists(st.integers(0, 10_000), max_size=8))
def test_a_chunked_body_is_the_same_however_it_is_cut(payloads: list[bytes], places: list[int]) -> None:
    body = ChunkedBody()
    pieces = [piece for part in cut(chunked(payloads), places) for piece in body.feed(part)]
    assert pieces == payloads
    assert body.is_complete
    assert body.is_between_chunks


events = st.lists(st.text(st.characters(codec="utf-8", exclude_characters="\r\n"), min_size=1), max_size=6)


@given(events, st.lists(st.integers(0, 10_000), max_size=8), st.sampled_from(["\n", "\r\n"]))
def test_events_are_the_same_however_they_are_cut(texts: list[str], places: list[int], newline: str) -> None:
    stream = "".join(f"data: {text}{newline}{newline}" for text in texts).encode()
    splitter = EventSplitter()
    found = [data for part in cut(stream, places) for data in splitter.feed(part)]
    assert found == [f" {text}".encode() for text in texts]
    assert not splitter.has_partial_event


def test_comments_and_other_fields_are_no_data() -> None:
    splitter = EventSplitter()
    found = splitter.feed(b": ping\n\nevent: token\nid: 3\ndata: one\ndata: two\n\nretry: 5\n\n")
    assert found == [b" one\n two"]


def test_half_an_event_is_noticed() -> None:
    splitter = EventSplitter()
    assert splitter.feed(b'data: {"tok') == []
    assert splitter.has_partial_event


def test_trailers_and_chunk_extensions_are_skipped() -> None:
    body = ChunkedBody()
    assert body.feed(b"3;x=1\r\nabc\r\n0\r\nx-sum: 1\r\n\r\n") == [b"abc"]
    assert body.is_complete


@pytest.mark.parametrize("line", [b"zz", b"-5", b""])
def test_a_chunk_size_that_is_none_is_a_bad_answer(line: bytes) -> None:
    with pytest.raises(BadAnswer, match="chunk size"):
        ChunkedBody().feed(line + b"\r\nabc\r\n")


def test_a_head_is_read_with_lower_case_names() -> None:
    head = parse_head(b"HTTP/1.1 429 Too Many\r\nRetry-After: 3\r\nContent-Length: 12\r\nConnection: Close")
    assert (head.status, head.headers["retry-after"], head.keeps_alive) == (429, "3", False)
    assert isinstance(body_of(head), SizedBody)


@pytest.mark.parametrize("raw", [b"SSH-2.0-OpenSSH", b"HTTP/1.1 nope", b""])
def test_what_is_no_head_is_a_bad_answer(raw: bytes) -> None:
    with pytest.raises(BadAnswer):
        parse_head(raw)


def test_a_sized_body_ends_with_its_last_byte_and_no_later() -> None:
    body = SizedBody(5)
    body.feed(b"abc")
    assert not body.is_complete
    body.feed(b"de")
    assert body.is_complete
    with pytest.raises(BadAnswer):
        body.feed(b"f")
