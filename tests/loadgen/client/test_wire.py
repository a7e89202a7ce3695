import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadgen.client.wire import MAX_HEAD_BYTES, AnswerParser, BadAnswer, EventSplitter


def chunked(payloads: list[bytes]) -> bytes:
    return b"".join(b"%x\r\n%b\r\n" % (len(p), p) for p in payloads) + b"0\r\n\r\n"


def cut(data: bytes, places: list[int]) -> list[bytes]:
    edges = [0, *sorted(place % (len(data) + 1) for place in places), len(data)]
    return [data[low:high] for low, high in itertools.pairwise(edges)]


HEAD = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"


@given(st.lists(st.binary(min_size=1, max_size=40), max_size=6), st.lists(st.integers(0, 10_000), max_size=8))
def test_a_chunked_answer_is_the_same_however_it_is_cut(payloads: list[bytes], places: list[int]) -> None:
    answer = AnswerParser()
    pieces = [piece for part in cut(HEAD + chunked(payloads), places) for piece in answer.feed(part)]
    assert b"".join(pieces) == b"".join(payloads)
    assert answer.head is not None and answer.head.status == 200
    assert answer.is_complete and answer.is_chunked and not answer.is_in_chunk


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
    answer = AnswerParser()
    assert answer.feed(HEAD + b"3;x=1\r\nabc\r\n0\r\nx-sum: 1\r\n\r\n") == [b"abc"]
    assert answer.is_complete


def test_half_a_chunk_is_noticed() -> None:
    answer = AnswerParser()
    assert answer.feed(HEAD + b"5\r\nab") == [b"ab"]
    assert answer.is_in_chunk and not answer.is_complete
    assert answer.feed(b"cde\r\n") == [b"cde"]
    assert not answer.is_in_chunk


@pytest.mark.parametrize("line", [b"zz", b"-5", b""])
def test_a_chunk_size_that_is_none_is_a_bad_answer(line: bytes) -> None:
    with pytest.raises(BadAnswer, match=r"HTTP/1\.1 body"):
        AnswerParser().feed(HEAD + line + b"\r\nabc\r\n")


def test_a_head_is_read_with_lower_case_names() -> None:
    answer = AnswerParser()
    answer.feed(b"HTTP/1.1 429 Too Many\r\nRetry-After: 3\r\nContent-Length: 12\r\nConnection: Close\r\n\r\n")
    head = answer.head
    assert head is not None
    assert (head.status, head.headers["retry-after"], head.keeps_alive) == (429, "3", False)
    assert answer.is_sized and not answer.is_complete


def test_interim_heads_are_skipped() -> None:
    answer = AnswerParser()
    answer.feed(b"HTTP/1.1 100 Continue\r\nx-early: 1\r\n\r\nHTTP/1.1 204 None\r\n\r\n")
    assert answer.head is not None and answer.head.status == 204 and answer.head.headers == {}
    assert answer.is_complete


@pytest.mark.parametrize("raw", [b"SSH-2.0-OpenSSH\r\n", b"HTTP/1.1 nope\r\n\r\n", b"\0"])
def test_what_is_no_head_is_a_bad_answer(raw: bytes) -> None:
    with pytest.raises(BadAnswer, match=r"HTTP/1\.1 head"):
        AnswerParser().feed(raw)


def test_a_head_without_end_is_a_bad_answer() -> None:
    answer = AnswerParser()
    with pytest.raises(BadAnswer, match=f"more than {MAX_HEAD_BYTES} bytes"):
        for part in [b"HTTP/1.1 200 OK\r\n", *[b"x: " + b"y" * 1000 + b"\r\n"] * 70]:
            answer.feed(part)


def test_a_body_without_length_ends_with_its_connection() -> None:
    answer = AnswerParser()
    assert answer.feed(b"HTTP/1.1 200 OK\r\n\r\nabc") == [b"abc"]
    assert not answer.is_sized and not answer.is_complete


def test_a_sized_body_ends_with_its_last_byte_and_no_later() -> None:
    answer = AnswerParser()
    answer.feed(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nabc")
    assert not answer.is_complete
    answer.feed(b"de")
    assert answer.is_complete
    with pytest.raises(BadAnswer):
        answer.feed(b"f")
