"""Conversations about tools as templates write them, and as text where a template has no words for tools."""

import json
from typing import Any

import msgspec
import pytest

from router.text.chat_template import ChatTemplateError
from router.text.prompt import Prompt
from router.text.tokenizer import Tokenizer
from router.tools.call_format import GENERIC, HERMES, LLAMA, MISTRAL
from router.tools.tools import Function, Tools
from tests.router.http_fakes import byte_tokenizer

PARAMETERS = {"type": "object", "properties": {"city": {"type": "string"}}}
TOOLS = Tools(functions=[Function("weather", "Of a city.", PARAMETERS)], names=["weather"])
TALK = [{"role": "user", "content": "Hi"}]
CALL = {"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": {"city": "Rome"}}}
CALLED: list[dict[str, Any]] = [
    *TALK,
    {"role": "assistant", "content": "", "tool_calls": [CALL]},
    {"role": "tool", "content": "sunny", "tool_call_id": "call_1"},
    {"role": "tool", "content": "warm", "tool_call_id": "call_1"},
]
PLAIN = byte_tokenizer("{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}")
KNOWING = byte_tokenizer(
    "<tool_call>{% for t in tools or [] %}{{ t | tojson }}{% endfor %}"
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}{{ (m.tool_calls or []) | tojson }}{% endfor %}"
)
SILENT = byte_tokenizer("<tool_call>{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}")
STRICT = byte_tokenizer(
    "[TOOL_CALLS][{{ tools | tojson }}{% for m in messages %}"
    "{% for c in m.tool_calls %}{{ c.id }} {% endfor %}{{ m.tool_call_id }} {% endfor %}"
)
WITHOUT_SYSTEM = byte_tokenizer(
    "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system') }}{% endif %}"
    "<{{ m.role }}>{{ m.content }}{% endfor %}"
)


def written(tokenizer: Tokenizer, messages: list[dict[str, Any]], **more: Any) -> str:
    return Prompt(messages=messages, **{"tools": TOOLS, **more}).written(tokenizer)


@pytest.mark.parametrize(
    ("tokenizer", "calls"), [(PLAIN, None), (KNOWING, HERMES), (SILENT, None), (STRICT, MISTRAL)]
)
def test_a_template_knows_tools_if_it_writes_them(tokenizer: Tokenizer, calls: Any) -> None:
    assert tokenizer.call_format is calls
    bound = Prompt(messages=TALK, tools=TOOLS).with_call_format(tokenizer)
    assert bound.call_format is (calls or GENERIC)


def test_a_template_that_knows_tools_gets_them_as_they_are() -> None:
    text = written(KNOWING, CALLED)
    assert json.dumps(TOOLS.described[0], ensure_ascii=False) in text
    assert json.dumps([CALL]) in text
    assert "<tool>sunny" in text


def test_a_result_has_the_name_of_its_function() -> None:
    template = "<tool_call>{{ tools }}{% for m in messages %}{{ m.role }}={{ m.name }} {% endfor %}"
    text = written(
        byte_tokenizer(template), [*CALLED, CALLED[2] | {"name": "own"}, CALLED[2] | {"tool_call_id": "x"}]
    )
    assert text.split()[-5:] == ["assistant=", "tool=weather", "tool=weather", "tool=own", "tool="]


def test_ids_that_are_no_text_are_nobodys() -> None:
    odd = [TALK[0], CALLED[1] | {"tool_calls": [CALL | {"id": {}}]}, CALLED[2]]
    assert "<tool>sunny" in written(KNOWING, odd)
    assert written(STRICT, odd)


def test_templates_may_count_on_a_description() -> None:
    bare = Tools(functions=[Function("f", None, {})], names=["f"])
    template = (
        "<tool_call>{% for t in tools or [] %}{{ t.function.name + t.function.description }}{% endfor %}"
    )
    assert written(byte_tokenizer(template), TALK, tools=bare) == "<tool_call>f"


@pytest.mark.parametrize("tokenizer", [PLAIN, SILENT])
def test_other_templates_get_tools_and_calls_as_text(tokenizer: Tokenizer) -> None:
    text = written(tokenizer, CALLED)
    assert "<system># Tools" in text
    assert json.dumps(TOOLS.described[0]) in text
    called = HERMES.written([("weather", '{"city": "Rome"}')])
    assert f"<user>Hi<assistant>{called}<user>" in text
    assert text.endswith(
        "<user><tool_response>\nsunny\n</tool_response>\n<tool_response>\nwarm\n</tool_response>"
    )


def test_a_system_message_stays_before_the_tools() -> None:
    text = written(PLAIN, [{"role": "system", "content": "Be brief."}, *TALK])
    assert text.startswith("<system>Be brief.\n\n# Tools\n")
    assert text.endswith("<user>Hi")


def test_where_there_is_no_system_message_the_user_tells_of_tools() -> None:
    text = written(WITHOUT_SYSTEM, TALK)
    assert text.startswith("<user># Tools\n")
    assert text.endswith("\n\nHi")
    with pytest.raises(ChatTemplateError, match="no system"):
        written(WITHOUT_SYSTEM, [{"role": "system", "content": ""}, *TALK])


def test_without_tools_what_was_called_is_not_lost() -> None:
    assert HERMES.trigger in written(PLAIN, CALLED, tools=None)
    assert "# Tools" not in written(PLAIN, CALLED, tools=None)
    assert written(PLAIN, TALK, tools=None) == "<user>Hi"


def test_ids_fit_the_templates_that_count_their_letters() -> None:
    message = CALLED[1] | {"tool_calls": [CALL, CALL | {"id": "abcdefgh1"}]}
    *_, one, two, result = written(STRICT, [TALK[0], message, CALLED[2]]).split()
    assert (one, len(one), two) == (result, 9, "abcdefgh1")


def test_another_model_is_told_of_the_format_that_the_answer_has() -> None:
    """An answer that was begun under one format ends under it, whoever goes on with it."""
    prompt = msgspec.structs.replace(Prompt(messages=CALLED, tools=TOOLS), call_format=LLAMA)
    assert LLAMA.written([("weather", '{"city": "Rome"}')]) in prompt.written(KNOWING)
    assert prompt.grammar(KNOWING) == prompt.grammar(PLAIN)
    assert json.dumps(LLAMA.opening("weather")) in prompt.grammar(PLAIN)


def test_a_grammar_is_of_the_tokenizers_own_tokens() -> None:
    knows = byte_tokenizer()
    knows.backend.add_special_tokens(["<tool_call>"])
    prompt = Prompt(messages=TALK, tools=TOOLS, call_format=HERMES)
    [id] = knows.encode("<tool_call>")
    assert f"<[{id}]>" in prompt.grammar(Tokenizer(knows.backend))
    assert f"<[{id}]>" not in prompt.grammar(PLAIN)
    assert Prompt(messages=TALK).grammar(PLAIN) == ""


def test_a_grammar_names_no_token_that_the_model_lacks() -> None:
    knows = byte_tokenizer(special=["<tool_call>", "<think>"])
    prompt = Prompt(messages=TALK, tools=TOOLS, call_format=HERMES)
    [first] = knows.encode("<tool_call>")
    assert f"<[{first}]>" in prompt.grammar(knows, vocab_size=first + 1)
    assert prompt.grammar(knows, vocab_size=first) == prompt.grammar(PLAIN)
