import msgspec
import pytest

from loadgen.client.dialects import Ask, Dialect, Message
from loadgen.client.readers import GarbageEvent
from loadgen.client.records import Flaw, Outcome, Record
from loadgen.selftest.answers import Model, Question, events


def asked(**changes: object) -> Ask:
    return msgspec.structs.replace(Ask(messages=(Message("user", "Hi"),), text="Hi", max_tokens=7), **changes)


def read(dialect: Dialect, stream: list[bytes]) -> Record:
    """The record of a stream of whole events, one per second."""
    record = Record(number=0)
    reader = dialect.reader(record)
    for at, event in enumerate(stream):
        for line in event.strip().split(b"\n\n"):
            reader.take(line.removeprefix(b"data:"), float(at))
    return record


def whole(dialect: Dialect, max_tokens: int = 6) -> list[bytes]:
    return list(events(Question(dialect.value, "a prompt", max_tokens, "seed"), Model()))


@pytest.mark.parametrize("dialect", list(Dialect))
def test_a_faultless_answer_is_read_whole(dialect: Dialect) -> None:
    record = read(dialect, whole(dialect))
    assert len(record.token_times) == record.num_tokens == 6
    assert record.finish_reason == "length"
    assert record.input_tokens == 2
    assert record.flaws == []
    assert record.text == read(Dialect.TGI, whole(Dialect.TGI)).text


def test_a_native_answer_tells_depth_and_segments() -> None:
    record = read(Dialect.TGI, whole(Dialect.TGI))
    assert len(record.exit_layers) == len(record.confidences) == 6
    assert [segment.model for segment in record.segments] == ["synthetic-large"]
    assert record.segments[0].depth == 30


@pytest.mark.parametrize(
    ("spoil", "flaw"),
    [
        (lambda said: [*said[:2], said[1], *said[2:]], Flaw.DUPLICATED),
        (lambda said: said[:2] + said[3:], Flaw.GAP),
        (lambda said: said[1:], Flaw.GAP),
        (lambda said: [*said, said[1]], Flaw.AFTER_END),
        (lambda said: [*said, said[-1]], Flaw.DUPLICATED),
        (
            lambda said: [*said[:2], said[2].replace(b'"text":" ', b'"text":" not'), *said[3:]],
            Flaw.TEXT_DIFFERS,
        ),
        (lambda said: said[:2] + said[3:], Flaw.COUNT_DIFFERS),
    ],
)
def test_flaws_of_a_native_stream_are_seen(spoil, flaw: Flaw) -> None:
    assert flaw in read(Dialect.TGI, spoil(whole(Dialect.TGI))).flaws


@pytest.mark.parametrize("dialect", [Dialect.COMPLETIONS, Dialect.CHAT])
def test_a_chunk_with_another_streams_id_is_mixed(dialect: Dialect) -> None:
    said = whole(dialect)
    foreign = said[2].replace(b"cmpl-seed", b"cmpl-other")
    assert read(dialect, [*said[:2], foreign, *said[3:]]).flaws == [Flaw.MIXED]


@pytest.mark.parametrize("dialect", [Dialect.COMPLETIONS, Dialect.CHAT])
def test_two_ends_are_a_duplicate(dialect: Dialect) -> None:
    said = whole(dialect)
    assert Flaw.DUPLICATED in read(dialect, [*said, said[-1]]).flaws


@pytest.mark.parametrize(
    ("dialect", "event"),
    [
        (Dialect.TGI, b'{"error":"out of memory","error_type":"generation"}'),
        (Dialect.CHAT, b'{"error":{"message":"out of memory"}}'),
    ],
)
def test_an_error_in_mid_stream_is_told(dialect: Dialect, event: bytes) -> None:
    record = read(dialect, [event])
    assert record.outcome is Outcome.ERROR_EVENT
    assert "out of memory" in record.detail


@pytest.mark.parametrize("dialect", list(Dialect))
def test_what_is_no_json_is_garbage(dialect: Dialect) -> None:
    with pytest.raises(GarbageEvent):
        read(dialect, [b"{nothing"])


def test_a_chat_role_chunk_is_no_token() -> None:
    role = b'{"id":"x","choices":[{"index":0,"delta":{"role":"assistant","content":""}}]}'
    assert len(read(Dialect.CHAT, [role]).token_times) == 0


def test_usage_counts_tokens_where_chunks_carry_several() -> None:
    chunk = b'{"id":"x","choices":[{"index":0,"text":"two tokens","finish_reason":"stop"}]}'
    usage = b'{"id":"x","choices":[],"usage":{"prompt_tokens":3,"completion_tokens":2}}'
    record = read(Dialect.COMPLETIONS, [chunk, usage])
    assert (len(record.token_times), record.num_tokens) == (1, 2)


def test_extras_are_sent_only_when_asked_for() -> None:
    body = msgspec.json.decode(Dialect.COMPLETIONS.body(asked(), "m"))
    assert not {"ignore_eos", "exit_threshold", "exact", "seed"} & set(body)
    extras = asked(ignore_eos=True, exit_threshold=0.5, exact=True, extra={"priority": 3})
    body = msgspec.json.decode(Dialect.TGI.body(extras, "m"))["parameters"]
    assert (body["ignore_eos"], body["exit_threshold"], body["exact"], body["priority"]) == (
        True,
        0.5,
        True,
        3,
    )


def test_greedy_is_no_temperature_zero_for_tgi() -> None:
    assert "temperature" not in msgspec.json.decode(Dialect.TGI.body(asked(), "m"))["parameters"]
    warm = msgspec.json.decode(Dialect.TGI.body(asked(temperature=0.7), "m"))["parameters"]
    assert (warm["temperature"], warm["do_sample"]) == (0.7, True)


def test_special_tokens_are_no_part_of_a_native_answers_text() -> None:
    stream = [
        b'data: {"index":1,"token":{"id":5,"text":"Hi","special":false},"generated_text":null}',
        b'data: {"index":2,"token":{"id":2,"text":"<|im_end|>","special":true},"generated_text":null}',
        b'data: {"index":3,"token":{"id":6,"text":" there","special":false},"generated_text":"Hi there"}',
    ]
    record = read(Dialect.TGI, stream)
    assert record.flaws == []
    assert len(record.token_times) == 3


def test_cached_tokens_are_read_where_they_are_told() -> None:
    details = b'"details":{"finish_reason":"length","generated_tokens":1,"input_length":9,"cached_tokens":8}'
    event = b'data:{"index":1,"token":{"id":1,"text":"a"},"generated_text":"a",' + details + b"}"
    assert read(Dialect.TGI, [event]).cached_tokens == 8
    usage = b'"usage":{"prompt_tokens":9,"completion_tokens":1,"prompt_tokens_details":{"cached_tokens":8}}'
    assert read(Dialect.COMPLETIONS, [b'data:{"choices":[],' + usage + b"}"]).cached_tokens == 8
    assert read(Dialect.TGI, whole(Dialect.TGI)).cached_tokens is None
    assert read(Dialect.COMPLETIONS, whole(Dialect.COMPLETIONS)).cached_tokens is None
