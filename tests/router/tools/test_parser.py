"""Answers that call tools, read piece by piece: nothing depends on where the pieces begin."""

import itertools
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.tools.call_format import HERMES, LLAMA, MISTRAL, MISTRAL_NAMED, MISTRAL_SPACED, CallFormat
from router.tools.parser import CallParser

NAMES = ["get", "get_x", "a-1"]
FORMATS = [HERMES, MISTRAL, MISTRAL_SPACED, MISTRAL_NAMED, LLAMA]
BY_NAME = pytest.mark.parametrize("calls", FORMATS, ids=[calls.name for calls in FORMATS])

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=6) | st.sampled_from(['"}', "\\", "]", "{"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)
arguments = st.dictionaries(st.text(max_size=4), values, max_size=3).map(json.dumps)
some_calls = st.lists(st.tuples(st.sampled_from(NAMES), arguments), min_size=1, max_size=3)
pieces = st.one_of(
    st.sampled_from(["<", "<tool", "<tool_call>", "[TOOL", "[TOOL_CALLS]", "{", "\n", "hi"]), st.text()
)
texts = st.lists(pieces, max_size=5).map("".join)


def read(parser: CallParser, cut: list[str]) -> tuple[str, list[tuple[str, str]]]:
    """Content, and calls by name and arguments."""
    content = ""
    calls: list[Any] = []
    for said in [*(parser.feed(piece) for piece in cut), parser.finish()]:
        content += said.content
        for part in said.calls:
            assert (part.name is not None) == (part.index == len(calls))
            if part.name is not None:
                calls.append([part.name, ""])
            calls[part.index][1] += part.arguments
    return content, [(name, arguments) for name, arguments in calls]


@st.composite
def cuts(draw: Any, text: str) -> list[str]:
    at = sorted(draw(st.sets(st.integers(0, len(text)), max_size=12)))
    bounds = [0, *at, len(text)]
    return [text[start:stop] for start, stop in itertools.pairwise(bounds)]


@BY_NAME
@given(st.data())
def test_calls_are_read_as_they_were_written(calls: CallFormat, data: st.DataObject) -> None:
    made = data.draw(some_calls)[: 1 if not calls.between else None]
    content = "" if calls.begins_answer else data.draw(st.sampled_from(["", "I look.\n", "<tool> [TOOL"]))
    text = content + calls.written(made)
    assert read(CallParser(calls, NAMES), data.draw(cuts(text))) == (content, made)


@BY_NAME
@given(st.data())
def test_any_text_reads_alike_however_it_is_cut(calls: CallFormat, data: st.DataObject) -> None:
    """Calls in the middle of anything, whole or broken off."""
    made = data.draw(some_calls)
    whole = data.draw(texts) + calls.written(made) + data.draw(texts)
    text = whole[: data.draw(st.integers(0, len(whole)))]
    assert read(CallParser(calls, NAMES), data.draw(cuts(text))) == read(CallParser(calls, NAMES), [text])


@BY_NAME
def test_what_was_cut_off_is_told_as_far_as_it_came(calls: CallFormat) -> None:
    text = calls.written([("get", '{"city": "Rome"}')])
    at = text.index("Rome") + 2
    assert read(CallParser(calls, NAMES), [text[:at]]) == ("", [("get", '{"city": "Ro')])
    assert read(CallParser(calls, NAMES), [text[: text.index("get") + 1]]) == ("", [])


@BY_NAME
def test_text_is_told_at_once_unless_a_trigger_may_begin(calls: CallFormat) -> None:
    parser = CallParser(calls, NAMES)
    assert parser.feed("Hello").content == "Hello"
    assert parser.feed(" world <x [y").content == " world <x [y"


@BY_NAME
def test_where_a_call_is_required_an_incomplete_trigger_is_no_content(calls: CallFormat) -> None:
    text = calls.trigger[: len(calls.trigger) // 2 + 1]
    for cut in ([text], list(text)):
        content, made = read(CallParser(calls, NAMES, must_call=True), cut)
        assert (content, made) == ("", [])
    assert read(CallParser(HERMES, NAMES), ["<tool_"]) == ("<tool_", [])


def test_a_beginning_of_a_trigger_is_held_only_while_it_may_be_one() -> None:
    parser = CallParser(HERMES, NAMES)
    assert parser.feed("a <tool").content == "a "
    assert parser.feed("box>").content == "<toolbox>"
    assert parser.feed("<").content == ""
    assert parser.finish().content == "<"


def test_arguments_stream_as_they_come() -> None:
    parser = CallParser(HERMES, NAMES)
    [begun] = parser.feed('<tool_call>\n{"name": "get", "arguments": ').calls
    assert (begun.index, begun.name, begun.arguments) == (0, "get", "")
    assert [part.arguments for part in parser.feed('{"ci').calls] == ['{"ci']
    assert [part.arguments for part in parser.feed('ty": "}"}').calls] == ['ty": "}"}']
    assert parser.feed("}\n</tool_call>").calls == []


@pytest.mark.parametrize(
    ("calls", "text"),
    [
        (HERMES, '<tool_call>\n{"name": "unknown", "arguments": {}}\n</tool_call>'),
        (HERMES, "<tool_call> is a tag"),
        (MISTRAL, "[TOOL_CALLS] is a mark"),
        (LLAMA, '{"city": "Rome"}'),
        (LLAMA, 'It is {"name": "get", "parameters": {}}'),
    ],
)
def test_what_is_no_call_is_content(calls: CallFormat, text: str) -> None:
    assert read(CallParser(calls, NAMES), list(text)) == (text, [])


@BY_NAME
def test_blanks_before_a_call_are_no_content(calls: CallFormat) -> None:
    text = "\n\n" + calls.written([("get", "{}")])
    assert read(CallParser(calls, NAMES), list(text)) == ("", [("get", "{}")])
    assert read(CallParser(calls, NAMES), ["\n", "\n"]) == ("\n\n", [])
