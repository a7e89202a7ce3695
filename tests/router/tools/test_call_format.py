"""Formats told from chat templates, by excerpts of those that people serve."""

import pytest

from router.tools.call_format import (
    HERMES,
    LLAMA,
    MISTRAL,
    MISTRAL_NAMED,
    MISTRAL_SPACED,
    CallFormat,
    format_of,
)

QWEN = """{{- 'within <tool_call></tool_call> XML tags:\\n<tool_call>\\n{\\"name\\": <function-name>}' }}"""
QWEN_CODER = "<tool_call>\n<function=example>\n<parameter=a>\n"
LLAMA_3 = """'Respond in the format {"name": function name, "parameters": dictionary of argument name}'"""


@pytest.mark.parametrize(
    ("template", "calls"),
    [
        (QWEN, HERMES),
        (QWEN_CODER, None),
        ('{{- "[TOOL_CALLS] [" }}', MISTRAL_SPACED),
        ('{{- "[TOOL_CALLS][" }}', MISTRAL),
        ('{{- "[TOOL_CALLS]" + name + "[ARGS]" + arguments }}', MISTRAL_NAMED),
        ('{{- "[TOOL_CALLS]" + name + "[CALL_ID]" + id + "[ARGS]" + arguments }}', None),
        (LLAMA_3, LLAMA),
        ("{% for m in messages %}{{ m.content }}{% endfor %}", None),
        ("", None),
    ],
)
def test_a_template_tells_its_format(template: str, calls: CallFormat | None) -> None:
    assert format_of(template) is calls


@pytest.mark.parametrize("calls", [HERMES, MISTRAL, MISTRAL_SPACED, MISTRAL_NAMED, LLAMA])
def test_several_calls_have_all_their_names(calls: CallFormat) -> None:
    text = calls.written([("one", '{"a": 1}'), ("two", "{}")])
    assert text.index("one") < text.index('{"a": 1}') < text.index("two") < text.rindex("{}")
