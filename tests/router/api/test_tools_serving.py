"""Calls from a real shard: they fit their schemas, though the model's weights are random."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import openai
import pytest

from tests.running import Server

TALK: Any = [{"role": "user", "content": "Play."}]
TEMPLATE = (  # short, for a context of 256 tokens, of which a letter is one
    "{% for t in tools or [] %}<tool_call>{{ t.function.name }}{% endfor %}"
    "{% for m in messages %}{{ m.content }}{% endfor %}"
)


def schema(**properties: Any) -> Any:
    return {"type": "object", "properties": properties, "required": list(properties)}


FUNCTIONS: Any = [
    {"name": "pick", "parameters": schema(color={"enum": ["red", "blue"]})},
    {"name": "roll", "parameters": schema(sides={"enum": [6, 20]}, fair={"type": "boolean"})},
]
TOOLS: Any = [{"type": "function", "function": function} for function in FUNCTIONS]
ROLL: Any = {"type": "function", "function": {"name": "roll"}}


@pytest.fixture(scope="module")
def sdk(
    serve: Callable[..., Server], tiny_model: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[openai.OpenAI]:
    config = tmp_path_factory.mktemp("template") / "tokenizer_config.json"
    config.write_text(json.dumps({"chat_template": TEMPLATE}))
    settings = {"model_id": tiny_model("llama"), "device": "cpu", "dtype": "float32"}
    with (
        serve(**settings, served_model_name="tiny", tokenizer_config_path=config) as server,
        openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client,
    ):
        yield client


def check(name: str, arguments: str) -> None:
    received = json.loads(arguments)
    if name == "pick":
        assert received in ({"color": "red"}, {"color": "blue"})
    else:
        assert received.keys() == {"sides", "fair"}
        assert (received["sides"] in (6, 20), type(received["fair"])) == (True, bool)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("temperature", [0, 3])
def test_a_call_that_must_be_made_fits_its_schema(sdk: openai.OpenAI, temperature: float, seed: int) -> None:
    answer = sdk.chat.completions.create(
        model="tiny",
        messages=TALK,
        tools=TOOLS,
        tool_choice="required",
        parallel_tool_calls=False,
        temperature=temperature,
        seed=seed,
    )
    [choice] = answer.choices
    assert (choice.message.content, choice.finish_reason) == (None, "tool_calls")
    [call] = choice.message.tool_calls or []
    assert call.type == "function"
    check(call.function.name, call.function.arguments)


def test_a_streamed_call_is_the_whole_one(sdk: openai.OpenAI) -> None:
    asked: Any = {"model": "tiny", "messages": TALK, "tools": TOOLS, "tool_choice": ROLL, "temperature": 0}
    [whole] = sdk.chat.completions.create(**asked).choices
    [call] = whole.message.tool_calls or []
    with sdk.chat.completions.stream(**asked) as stream:
        [streamed] = stream.get_final_completion().choices[0].message.tool_calls or []
    assert call.type == "function"
    assert (streamed.function.name, streamed.function.arguments) == ("roll", call.function.arguments)
    assert whole.finish_reason == "stop"


def test_a_choice_leaves_text_free(sdk: openai.OpenAI) -> None:
    """A model that was never trained to call says what it says without tools, or calls."""
    answer = sdk.chat.completions.create(
        model="tiny", messages=TALK, tools=TOOLS, temperature=2, n=8, seed=1, max_tokens=60
    )
    for choice in answer.choices:
        assert choice.message.content or choice.message.tool_calls
        for call in choice.message.tool_calls or []:
            assert call.type == "function"
            assert (
                choice.finish_reason == "length" or check(call.function.name, call.function.arguments) is None
            )


def test_a_response_calls_and_talks(sdk: openai.OpenAI) -> None:
    tools: Any = [{"type": "function"} | function for function in FUNCTIONS]
    asked: Any = {"model": "tiny", "input": "Play.", "tools": tools, "parallel_tool_calls": False}
    [item] = sdk.responses.create(**asked, tool_choice="required").output
    assert item.type == "function_call"
    check(item.name, item.arguments)
    text = sdk.responses.create(model="tiny", input="Play.", max_output_tokens=8)
    assert text.usage is not None
    assert (text.status, text.usage.output_tokens) == ("incomplete", 8)
