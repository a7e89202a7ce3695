"""Grammars of answers that call tools, as llguidance reads them, with marks as text and as tokens."""

from pathlib import Path
from typing import Any

import msgspec
import pytest
import tokenizers
from llguidance import LLMatcher, LLTokenizer

from router.grammar import compiling
from router.grammar.constraint import Compiled, choice, schema
from router.text.tokenizer import Tokenizer
from router.tools.call_format import HERMES, LLAMA, MISTRAL, MISTRAL_NAMED, MISTRAL_SPACED, CallFormat
from router.tools.grammar import grammar_of
from router.tools.tools import Function, Tools
from tests.router.http_fakes import byte_tokenizer

FORMATS = [HERMES, MISTRAL, MISTRAL_SPACED, MISTRAL_NAMED, LLAMA]
BY_NAME = pytest.mark.parametrize("calls", FORMATS, ids=[calls.name for calls in FORMATS])
MARKS_AS_TOKENS = pytest.mark.parametrize("has_tokens", [False, True], ids=["text", "tokens"])


def function(name: str, parameters: dict[str, Any]) -> Function:
    """One whose schema was checked."""
    parameters = {"type": "object"} | parameters
    made = msgspec.msgpack.decode(
        compiling.compiled_schemas(msgspec.json.encode([parameters])), type=Compiled
    )
    [arguments] = msgspec.json.decode(made.grammar, type=list[msgspec.Raw])
    return Function(name, None, parameters, bytes(arguments).decode())


WEATHER = function("weather", {"properties": {"city": {"type": "string"}}})
DAY = {"enum": [1, 2]}
WEATHER_AT = function("weather_at", {"properties": {"day": {"$ref": "#/$defs/Day"}}, "$defs": {"Day": DAY}})
TOOLS = Tools(functions=[WEATHER, WEATHER_AT], names=["weather", "weather_at"], max_calls=3)
FIRST, SECOND = ("weather", '{"city": "Rome"}'), ("weather_at", '{"day": 2}')


class Grammar:
    """Tells which texts it takes, whole or as beginnings."""

    def __init__(
        self, folder: Path, tools: Tools, calls: CallFormat, has_tokens: bool = False, answer: str = ""
    ):
        backend = byte_tokenizer().backend
        if has_tokens:
            backend.add_special_tokens(["[TOOL_CALLS]", "[ARGS]", "<|other|>"])
            backend.add_tokens(
                [tokenizers.AddedToken(text) for text in ("<tool_call>", "</tool_call>", "<think>")]
            )
        backend.save(str(folder / "tokenizer.json"))
        self._tokenizer = Tokenizer(backend)
        self._reads = LLTokenizer(str(folder / "tokenizer.json"), eos_token=256)
        self.text = grammar_of(tools, calls, self._tokenizer.special_tokens, answer)

    def begins(self, text: str) -> bool:
        return self._matched(text) is not None

    def takes(self, text: str) -> bool:
        matcher = self._matched(text)
        return matcher is not None and matcher.is_accepting()

    def _matched(self, text: str) -> LLMatcher | None:
        matcher = LLMatcher(self._reads, self.text)
        assert not matcher.is_error(), matcher.get_error()
        ids = self._tokenizer.encode(text)
        return matcher if matcher.try_consume_tokens(ids) == len(ids) else None


def changed(**more: Any) -> Tools:
    return msgspec.structs.replace(TOOLS, **more)


@BY_NAME
@MARKS_AS_TOKENS
def test_text_or_calls(tmp_path: Path, calls: CallFormat, has_tokens: bool) -> None:
    grammar = Grammar(tmp_path, TOOLS, calls, has_tokens)
    for text in ("", "Hello {", "<think>Hm.</think> Yes < no"):
        assert grammar.takes(text)
    for made in ([FIRST], [SECOND]):
        assert grammar.takes(calls.written(made))
    assert grammar.takes("I look.\n" + calls.written([FIRST])) or calls.begins_answer


@BY_NAME
@MARKS_AS_TOKENS
def test_a_call_that_must_be_made(tmp_path: Path, calls: CallFormat, has_tokens: bool) -> None:
    grammar = Grammar(tmp_path, changed(must_call=True), calls, has_tokens)
    assert grammar.takes(calls.written([FIRST]))
    assert not grammar.takes("")
    assert not grammar.begins("Hello")


@BY_NAME
@MARKS_AS_TOKENS
@pytest.mark.parametrize("must_call", [False, True])
def test_a_call_has_a_known_name_and_arguments_of_its_schema(
    tmp_path: Path, calls: CallFormat, has_tokens: bool, must_call: bool
) -> None:
    grammar = Grammar(tmp_path, changed(must_call=must_call), calls, has_tokens)
    for name, arguments in [
        ("wind", "{}"),
        ("weather", '{"city": 1}'),
        ("weather", '{"town": ""}'),
        ("weather", '{"city":"Rome"}'),
        ("weather_at", '{"day": 3}'),
    ]:
        assert not grammar.begins(calls.written([(name, arguments)]))


@MARKS_AS_TOKENS
@pytest.mark.parametrize("calls", FORMATS[:4], ids=[calls.name for calls in FORMATS[:4]])
def test_several_calls_up_to_a_bound(tmp_path: Path, calls: CallFormat, has_tokens: bool) -> None:
    grammar = Grammar(tmp_path, TOOLS, calls, has_tokens)
    assert grammar.takes(calls.written([FIRST, SECOND, FIRST]))
    assert not grammar.begins(calls.written([FIRST, SECOND, FIRST, SECOND]))
    single = Grammar(tmp_path, changed(max_calls=1), calls, has_tokens)
    assert single.takes(calls.written([FIRST]))
    assert not single.begins(calls.written([FIRST, SECOND]))


@BY_NAME
def test_only_those_that_may_be_called(tmp_path: Path, calls: CallFormat) -> None:
    grammar = Grammar(tmp_path, changed(names=["weather_at"], must_call=True), calls, False)
    assert grammar.takes(calls.written([SECOND]))
    assert not grammar.begins(calls.written([FIRST]))


@MARKS_AS_TOKENS
@pytest.mark.parametrize("calls", FORMATS[:4], ids=[calls.name for calls in FORMATS[:4]])
@pytest.mark.parametrize(
    ("answer", "takes", "refuses"),
    [
        (compiling.grammar_of(schema(b'{"properties": {"a": {"enum": [1]}}}')), '{"a": 1}', '{"a": 2}'),
        (compiling.grammar_of(choice(["yes", "no"])), "yes", "maybe"),
    ],
    ids=["json", "choice"],
)
def test_an_answer_without_calls_may_have_a_grammar_of_its_own(
    tmp_path: Path, calls: CallFormat, has_tokens: bool, answer: str, takes: str, refuses: str
) -> None:
    grammar = Grammar(tmp_path, TOOLS, calls, has_tokens, answer)
    assert grammar.takes(takes)
    assert not grammar.begins(refuses)
    assert grammar.takes(calls.written([FIRST]))
    forced = Grammar(tmp_path, changed(must_call=True), calls, has_tokens, answer)
    assert not forced.begins(takes)
    assert forced.takes(calls.written([FIRST]))


def test_of_what_a_model_knows_as_tokens_nothing_is_spelled(tmp_path: Path) -> None:
    """Letters of a mark would stand where the model was never trained on them."""
    spelled = byte_tokenizer().encode("<")
    for has_tokens in (False, True):
        grammar = Grammar(tmp_path, changed(must_call=True), HERMES, has_tokens)
        reads = LLTokenizer(str(tmp_path / "tokenizer.json"), eos_token=256)
        assert LLMatcher(reads, grammar.text).try_consume_tokens(spelled) == (0 if has_tokens else 1)


@pytest.mark.parametrize(
    ("parameters", "takes", "refuses"),
    [
        ({"properties": {}}, "{}", '{"a": 1}'),
        ({"properties": {}, "additionalProperties": True}, '{"a": 1}', "[]"),
        ({"anyOf": [{"properties": {"a": {"type": "null"}}}]}, '{"a": null}', '{"a": 1}'),
        ({"x-guidance": {"whitespace_flexible": True}, "properties": {"a": {}}}, '{"a": 1}', '{ "a": 1}'),
    ],
)
def test_arguments_are_an_object_of_the_named_parameters(
    tmp_path: Path, parameters: dict[str, Any], takes: str, refuses: str
) -> None:
    tools = Tools(functions=[function("f", parameters)], names=["f"], must_call=True)
    grammar = Grammar(tmp_path, tools, HERMES, False)
    assert grammar.takes(HERMES.written([("f", takes)]))
    assert not grammar.begins(HERMES.written([("f", refuses)]))
