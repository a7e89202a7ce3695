"""Tools on /v1/chat/completions, as OpenAI's clients and Hugging Face's ask for them and read their calls."""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import huggingface_hub
import msgspec
import openai
import pytest

from router.tools.call_format import HERMES, MISTRAL
from router.tools.tools import MAX_CALLS, Tools
from tests.router.http_fakes import VOCAB_SIZE, Client, ready, serving

PATH = "/v1/chat/completions"
TALK: Any = [{"role": "user", "content": "Hi"}]
WEATHER: Any = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "Of a city.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
        "strict": True,
    },
}
LONG = 4096  # tokens, of which a letter is one
TIME: Any = {"type": "function", "function": {"name": "time"}}
ROME, NOW = ("weather", '{"city": "Rome"}'), ("time", "{}")
NAMED: Any = {"type": "function", "function": {"name": "weather"}}
MISTRAL_TEMPLATE = (
    "[TOOL_CALLS][{{ tools | tojson }}{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
)


@pytest.fixture
async def client() -> AsyncIterator[Client]:
    async with serving() as client:
        client.dispatcher.says = HERMES.written([ROME])
        client.dispatcher.max_total_tokens = LONG
        yield client


async def ask(client: Client, **more: Any) -> Any:
    status, answer = await client.post(PATH, {"messages": TALK, "tools": [WEATHER, TIME]} | more)
    assert status == 200, answer
    return answer


async def choice(client: Client, **more: Any) -> Any:
    [only] = (await ask(client, **more))["choices"]
    return only


async def chunks(client: Client, **more: Any) -> list[Any]:
    body = {"messages": TALK, "tools": [WEATHER, TIME], "stream": True} | more
    events = await client.events(PATH, body)
    assert events.pop() == "[DONE]"
    return [json.loads(event)["choices"][0] for event in events]


def joined(parts: list[Any]) -> tuple[str, list[tuple[str, str]]]:
    """Content, and calls by name and arguments, of chunks of one choice."""
    content = ""
    calls: list[Any] = []
    for part in parts:
        content += part["delta"].get("content") or ""
        for call in part["delta"].get("tool_calls", []):
            if call["index"] == len(calls):
                assert (call["type"], call["id"][:5]) == ("function", "call_")
                calls.append([call["function"]["name"], ""])
            else:
                assert call.keys() == {"index", "function"}
                assert call["function"].keys() == {"arguments"}
            calls[call["index"]][1] += call["function"]["arguments"]
    return content, [(name, arguments) for name, arguments in calls]


def tools(client: Client) -> Tools:
    prompt = client.dispatcher.submitted[-1].spec.prompt
    assert prompt is not None
    assert prompt.tools is not None
    return prompt.tools


def prompt_text(client: Client) -> str:
    return client.tokenizer.decode(client.dispatcher.submitted[-1].spec.prompt_token_ids)


async def test_a_call_is_told(client: Client) -> None:
    answered = await choice(client, n=1)
    [call] = answered["message"].pop("tool_calls")
    assert answered["message"] == {"role": "assistant", "content": None}
    assert call == {
        "id": call["id"],
        "type": "function",
        "function": {"name": "weather", "arguments": '{"city": "Rome"}'},
    }
    assert call["id"].startswith("call_")
    assert answered["finish_reason"] == "tool_calls"


async def test_text_is_text(client: Client) -> None:
    client.dispatcher.says = "I need none <tool>."
    answered = await choice(client)
    assert answered["message"] == {"role": "assistant", "content": "I need none <tool>."}
    assert answered["finish_reason"] == "stop"
    assert joined(await chunks(client)) == ("I need none <tool>.", [])


async def test_text_stands_beside_several_calls(client: Client) -> None:
    client.dispatcher.says = "I look.\n" + HERMES.written([ROME, NOW])
    message = (await choice(client))["message"]
    assert message["content"] == "I look.\n"
    assert [call["function"]["name"] for call in message["tool_calls"]] == ["weather", "time"]
    assert len({call["id"] for call in message["tool_calls"]}) == 2


async def test_a_stream_joined_is_the_whole(client: Client) -> None:
    client.dispatcher.says = "I look.\n" + HERMES.written([ROME, NOW])
    parts = await chunks(client)
    assert joined(parts) == ("I look.\n", [ROME, NOW])
    assert [part["finish_reason"] for part in parts if part["finish_reason"]] == ["tool_calls"]
    assert [part["delta"]["role"] for part in parts if "role" in part["delta"]] == ["assistant"]


async def test_a_stream_of_calls_alone_has_no_content(client: Client) -> None:
    parts = await chunks(client)
    first, *others, last = parts
    assert first["delta"]["content"] is None
    assert all(part["delta"].keys() == {"tool_calls"} for part in others)
    assert last["delta"] == {}
    deltas = [call for part in parts for call in part["delta"].get("tool_calls", [])]
    assert len(deltas) > 3, "arguments come in pieces"
    first, *others = deltas
    assert first["function"]["name"] == "weather"
    assert "".join(call["function"]["arguments"] for call in [first, *others]) == '{"city": "Rome"}'


async def test_a_call_that_length_cuts_off_is_told_as_far_as_it_came(client: Client) -> None:
    at = client.dispatcher.says.index("Rome") + 2
    answered = await choice(client, max_tokens=at)
    assert answered["finish_reason"] == "length"
    assert answered["message"]["tool_calls"][0]["function"]["arguments"] == '{"city": "Ro'
    parts = await chunks(client, max_tokens=at)
    assert joined(parts) == ("", [("weather", '{"city": "Ro')])
    assert parts[-1]["finish_reason"] == "length"


async def test_several_answers_have_calls_of_their_own(client: Client) -> None:
    answer = await ask(client, n=2)
    ids = [choice["message"]["tool_calls"][0]["id"] for choice in answer["choices"]]
    assert len(set(ids)) == 2


async def test_logprobs_stand_beside_calls(client: Client) -> None:
    answered = await choice(client, logprobs=True)
    tokens = "".join(entry["token"] for entry in answered["logprobs"]["content"])
    assert tokens.startswith(client.dispatcher.says)
    parts = await chunks(client, logprobs=True)
    streamed = [entry for part in parts for entry in part["logprobs"]["content"]]
    assert streamed == answered["logprobs"]["content"]


async def test_a_stop_text_ends_a_call_too(client: Client) -> None:
    answered = await choice(client, stop="om")
    assert answered["finish_reason"] == "stop"  # and not "tool_calls": the arguments are no JSON
    assert answered["message"]["tool_calls"][0]["function"]["arguments"] == '{"city": "R'
    assert joined(await chunks(client, stop="om")) == ("", [("weather", '{"city": "R')])


async def test_marks_that_are_special_tokens_are_seen() -> None:
    async with serving(MISTRAL_TEMPLATE, special=["[TOOL_CALLS]"]) as client:
        client.dispatcher.says = "I look." + MISTRAL.written([ROME, NOW])
        client.dispatcher.max_total_tokens = LONG
        client.dispatcher.limits = msgspec.structs.replace(ready(), vocab_size=VOCAB_SIZE + 1)
        message = (await choice(client))["message"]
        assert message["content"] == "I look."
        assert [call["function"]["name"] for call in message["tool_calls"]] == ["weather", "time"]
        assert joined(await chunks(client, stop="k!")) == ("I look.", [ROME, NOW])
        prompt = client.dispatcher.submitted[-1].spec.prompt
        assert prompt is not None
        assert prompt.call_format is MISTRAL


@pytest.mark.parametrize(
    ("given", "must_call", "names"),
    [
        (None, False, ["weather", "time"]),
        ("auto", False, ["weather", "time"]),
        ("required", True, ["weather", "time"]),
        (NAMED, True, ["weather"]),
        ({"function": {"name": "time"}}, True, ["time"]),
        ("time", True, ["time"]),
        (
            {"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": [NAMED]}},
            False,
            ["weather"],
        ),
        (
            {"type": "allowed_tools", "allowed_tools": {"mode": "required", "tools": [NAMED]}},
            True,
            ["weather"],
        ),
    ],
)
async def test_who_may_or_must_be_called(
    client: Client, given: Any, must_call: bool, names: list[str]
) -> None:
    await ask(client, tool_choice=given)
    assert (tools(client).must_call, tools(client).names) == (must_call, names)
    assert [function.name for function in tools(client).functions] == ["weather", "time"]
    assert "Of a city." in prompt_text(client)


@pytest.mark.parametrize(
    ("more", "max_calls"),
    [({}, MAX_CALLS), ({"parallel_tool_calls": False}, 1), ({"tool_choice": NAMED}, 1)],
)
async def test_how_many_calls_there_may_be(client: Client, more: dict[str, Any], max_calls: int) -> None:
    await ask(client, **more)
    assert tools(client).max_calls == max_calls


async def test_a_call_that_was_named_ends_with_stop(client: Client) -> None:
    """As OpenAI has it; one that was only required ends as if it had been chosen."""
    assert (await choice(client, tool_choice=NAMED))["finish_reason"] == "stop"
    assert (await chunks(client, tool_choice=NAMED))[-1]["finish_reason"] == "stop"
    assert (await choice(client, tool_choice="required"))["finish_reason"] == "tool_calls"


async def test_without_a_choice_there_are_no_tools(client: Client) -> None:
    await ask(client, tool_choice="none")
    assert prompt_text(client) == "user: Hi\nbot: "
    await ask(client, tools=[], tool_choice="auto", parallel_tool_calls=False)
    assert prompt_text(client) == "user: Hi\nbot: "


async def test_the_tokens_of_a_chat_are_those_with_its_tools(client: Client) -> None:
    await ask(client)
    status, answer = await client.post("/chat_tokenize", {"messages": TALK, "tools": [WEATHER, TIME]})
    assert status == 200
    assert answer["templated_text"] == prompt_text(client)


def function(**fields: Any) -> Any:
    return {"type": "function", "function": {"name": "f"} | fields}


@pytest.mark.parametrize(
    ("more", "param", "message"),
    [
        ({"tools": [{"type": "custom", "custom": {}}]}, "tools[0].type", "custom"),
        ({"tools": [{"type": "function"}]}, "tools[0].function", "is missing"),
        ({"tools": [{"function": {}}]}, "tools[0].function.name", "is missing"),
        ({"tools": [function(name="a b")]}, "tools[0].function.name", "regex"),
        ({"tools": [function(), function()]}, "tools[1].function.name", "is taken: f"),
        ({"tools": [function()] * 129}, "tools", "length <= 128"),
        (
            {"tools": [function(parameters={"type": "array"})]},
            "tools[0].function.parameters.type",
            'must be "object"',
        ),
        (
            {"tools": [function(parameters={"description": "x" * 300_000})]},
            "tools",
            "at most 262144",
        ),
        (
            {"tools": [WEATHER, function(parameters={"properties": {"a": {"items": {"not": {}}}}})]},
            "tools[1].function.parameters.properties.a.items.not",
            "is not supported",
        ),
        (
            {"tools": [function(parameters={"properties": {"a": {"pattern": "("}}})]},
            "tools[0].function.parameters.properties.a.pattern",
            "is not supported",
        ),
        ({"tool_choice": "wind"}, "tool_choice", "names no function of `tools`: 'wind'"),
        (
            {"tool_choice": {"type": "function", "function": {"name": "wind"}}},
            "tool_choice.function.name",
            "There are: weather, time",
        ),
        ({"tool_choice": {"type": "function"}}, "tool_choice.function", "is missing"),
        ({"tool_choice": {"type": "allowed_tools"}}, "tool_choice.allowed_tools", "is missing"),
        (
            {"tool_choice": {"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": []}}},
            "tool_choice.allowed_tools.tools",
            "is empty",
        ),
        ({"tools": None, "tool_choice": "required"}, "tool_choice", "there are no `tools`"),
        ({"tools": [], "tool_choice": NAMED}, "tool_choice.function.name", "there are no `tools`"),
    ],
)
async def test_what_is_wrong_with_tools_is_named(
    client: Client, more: dict[str, Any], param: str, message: str
) -> None:
    status, answer = await client.post(PATH, {"messages": TALK, "tools": [WEATHER, TIME]} | more)
    assert (status, answer["error"]["param"]) == (400, param)
    assert message in answer["error"]["message"]
    assert client.dispatcher.submitted == []


async def test_where_answers_cannot_be_constrained_there_are_no_tools(client: Client) -> None:
    client.dispatcher.limits = msgspec.structs.replace(ready(), can_constrain=False)
    status, answer = await client.post(PATH, {"messages": TALK, "tools": [WEATHER]})
    assert (status, answer["error"]["param"]) == (400, "tools")
    await ask(client, tool_choice="none")


async def test_answers_are_held_to_the_schemas(client: Client) -> None:
    await ask(client)
    grammar = client.dispatcher.submitted[-1].grammar
    assert grammar is not None
    assert '"required": ["city"]' in grammar.source or '"required":["city"]' in grammar.source
    assert client.dispatcher.submitted[-1].requirements.constrained


FORMAT = {"response_format": {"type": "json_object"}}


async def test_beside_calls_the_text_has_its_format(client: Client) -> None:
    """A call in place of text that fits; where one must be made, there is no text."""
    await ask(client, **FORMAT)
    grammar = client.dispatcher.submitted[-1].grammar
    assert grammar is not None
    assert "@answer" in grammar.source
    await ask(client, tool_choice="required", **FORMAT)
    grammar = client.dispatcher.submitted[-1].grammar
    assert grammar is not None
    assert "@answer" not in grammar.source


async def test_calls_that_look_like_the_text_stand_alone() -> None:
    template = '{# "name": function name, "parameters": #}{{ tools | tojson }}{{ messages[0].content }}'
    async with serving(template) as client:
        client.dispatcher.max_total_tokens = LONG
        status, answer = await client.post(PATH, {"messages": TALK, "tools": [WEATHER]} | FORMAT)
        assert (status, answer["error"]["param"]) == (400, "response_format")
        assert "set `tool_choice`" in answer["error"]["message"]
        await ask(client, tool_choice="required", **FORMAT)
        await ask(client)


async def test_the_openai_sdk(client: Client) -> None:
    async with openai.AsyncOpenAI(base_url=f"{client.url}/v1", api_key="none", max_retries=0) as sdk:
        answer = await sdk.chat.completions.create(model="tgi", messages=TALK, tools=[WEATHER])
        [call] = answer.choices[0].message.tool_calls or []
        assert call.type == "function"
        assert (call.function.name, json.loads(call.function.arguments)) == ("weather", {"city": "Rome"})
        parsed = await sdk.chat.completions.parse(model="tgi", messages=TALK, tools=[WEATHER])
        [call] = parsed.choices[0].message.tool_calls or []
        assert call.function.parsed_arguments == {"city": "Rome"}
        result: Any = {"role": "tool", "tool_call_id": call.id, "content": "sunny"}
        client.dispatcher.says = "It is sunny."
        said: Any = answer.choices[0].message
        more = await sdk.chat.completions.create(model="tgi", messages=[*TALK, said, result], tools=[WEATHER])
        assert more.choices[0].message.content == "It is sunny."
        assert more.choices[0].message.tool_calls is None
        assert '{"name": "weather", "arguments": {"city": "Rome"}}' in prompt_text(client)


async def test_the_openai_sdks_stream_helper(client: Client) -> None:
    client.dispatcher.says = "I look.\n" + HERMES.written([ROME])
    async with openai.AsyncOpenAI(base_url=f"{client.url}/v1", api_key="none", max_retries=0) as sdk:
        kinds: list[str] = []
        async with sdk.chat.completions.stream(model="tgi", messages=TALK, tools=[WEATHER]) as stream:
            kinds += [event.type async for event in stream]
            final = await stream.get_final_completion()
    assert {"content.delta", "tool_calls.function.arguments.delta", "tool_calls.function.arguments.done"} <= {
        *kinds
    }
    message = final.choices[0].message
    assert message.content == "I look.\n"
    assert [call.function.parsed_arguments for call in message.tool_calls or []] == [{"city": "Rome"}]
    assert final.choices[0].finish_reason == "tool_calls"


async def test_hugging_faces_client(client: Client) -> None:
    hub = huggingface_hub.InferenceClient(base_url=client.url)
    asked: Any = {"messages": TALK, "tools": [WEATHER], "tool_choice": "weather"}
    answer = await asyncio.to_thread(lambda: hub.chat_completion(**asked))
    [call] = answer.choices[0].message.tool_calls or []
    assert (call.function.name, call.function.arguments) == ("weather", '{"city": "Rome"}')
    events = await asyncio.to_thread(lambda: list(hub.chat_completion(**asked, stream=True)))
    deltas = [call for event in events for call in event.choices[0].delta.tool_calls or []]
    assert "".join(call.function.arguments for call in deltas) == '{"city": "Rome"}'
    choice = huggingface_hub.ChatCompletionInputToolChoiceClass(
        function=huggingface_hub.ChatCompletionInputFunctionName(name="weather")
    )
    await asyncio.to_thread(lambda: hub.chat_completion(TALK, tools=[WEATHER], tool_choice=choice))
    assert tools(client).names == ["weather"]
