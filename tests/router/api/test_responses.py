"""`/v1/responses`, as the openai package asks for it and reads it."""

import json
from collections.abc import AsyncIterator
from typing import Any

import openai
import pydantic
import pytest

from router.tools.call_format import HERMES
from tests.router.http_fakes import Client, serving

PATH = "/v1/responses"
WEATHER: Any = {
    "type": "function",
    "name": "weather",
    "description": "Of a city.",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    "strict": True,
}
ROME, OSLO = ("weather", '{"city": "Rome"}'), ("weather", '{"city": "Oslo"}')
TEXT_EVENTS = [
    "response.created",
    "response.in_progress",
    "response.output_item.added",
    "response.content_part.added",
    *["response.output_text.delta"] * 6,
    "response.output_text.done",
    "response.content_part.done",
    "response.output_item.done",
    "response.completed",
]


@pytest.fixture
async def client() -> AsyncIterator[Client]:
    async with serving() as client:
        client.dispatcher.max_total_tokens = 4096
        yield client


@pytest.fixture
async def sdk(client: Client) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(base_url=f"{client.url}/v1", api_key="none", max_retries=0) as sdk:
        yield sdk


async def respond(client: Client, **more: Any) -> Any:
    status, answer = await client.post(PATH, {"input": "Hi"} | more)
    assert status == 200, answer
    return answer


async def events(client: Client, **more: Any) -> list[Any]:
    """Decoded, and numbered as they came."""
    async with client.session.post(
        client.url + PATH, json={"input": "Hi", "stream": True} | more
    ) as response:
        assert response.status == 200, await response.text()
        blocks = (await response.text()).removesuffix("\n\n").split("\n\n")
    received = []
    for block in blocks:
        name, data = block.split("\n")
        received.append(json.loads(data.removeprefix("data: ")))
        assert name == f"event: {received[-1]['type']}"
    assert [event["sequence_number"] for event in received] == list(range(len(received)))
    return received


def prompt_text(client: Client) -> str:
    return client.tokenizer.decode(client.dispatcher.submitted[-1].spec.prompt_token_ids)


def without_ids(items: Any) -> Any:
    return [{name: value for name, value in item.items() if name not in ("id", "call_id")} for item in items]


async def test_text_is_one_message(client: Client) -> None:
    answer = await respond(client, instructions="Be brief.")
    assert prompt_text(client) == "system: Be brief.\nuser: Hi\nbot: "
    part = {"type": "output_text", "text": "Hello!", "annotations": [], "logprobs": []}
    [item] = answer["output"]
    assert item["id"].startswith("msg_")
    assert without_ids([item]) == [
        {"type": "message", "role": "assistant", "status": "completed", "content": [part]}
    ]
    assert (answer["object"], answer["status"], answer["store"]) == ("response", "completed", False)
    assert answer["usage"]["output_tokens"] == 7
    assert answer["incomplete_details"] is None


async def test_what_length_cuts_off_is_incomplete(client: Client) -> None:
    answer = await respond(client, max_output_tokens=3)
    assert answer["status"] == answer["output"][0]["status"] == "incomplete"
    assert answer["incomplete_details"] == {"reason": "max_output_tokens"}
    assert answer["output"][0]["content"][0]["text"] == "Hel"
    assert (await events(client, max_output_tokens=3))[-1]["type"] == "response.incomplete"


async def test_text_streams_in_events_of_their_order(client: Client) -> None:
    received = await events(client)
    assert [event["type"] for event in received] == TEXT_EVENTS
    assert "".join(event["delta"] for event in received if "delta" in event) == "Hello!"
    assert received[0]["response"]["status"] == received[1]["response"]["status"] == "in_progress"
    assert received[-1]["response"]["output"] == [received[-2]["item"]]
    assert without_ids(received[-1]["response"]["output"]) == without_ids((await respond(client))["output"])


async def test_calls_stream_behind_text(client: Client) -> None:
    client.dispatcher.says = "I look.\n" + HERMES.written([ROME, OSLO])
    received = await events(client, tools=[WEATHER])
    done = [event["item"] for event in received if event["type"] == "response.output_item.done"]
    assert [item["type"] for item in done] == ["message", "function_call", "function_call"]
    assert received[-1]["response"]["output"] == done
    assert without_ids((await respond(client, tools=[WEATHER]))["output"]) == without_ids(done)
    for index, (_, arguments) in enumerate([ROME, OSLO], 1):
        own = [event for event in received if event.get("output_index") == index]
        kinds = [event["type"].removeprefix("response.") for event in own]
        assert kinds[0] == "output_item.added"
        assert {*kinds[1:-2]} == {"function_call_arguments.delta"}
        assert kinds[-2:] == ["function_call_arguments.done", "output_item.done"]
        assert (
            "".join(event["delta"] for event in own if "delta" in event) == own[-2]["arguments"] == arguments
        )


async def test_a_conversation_goes_on_from_its_items(client: Client) -> None:
    call = {"type": "function_call", "call_id": "call_1", "name": "weather", "arguments": '{"city": "Rome"}'}
    said = {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "I look."}]}
    hot = [{"type": "input_text", "text": "hot"}]
    items: list[Any] = [
        {"role": "user", "content": [{"type": "input_text", "text": "Hi"}]},
        said,
        call,
        call | {"call_id": "call_2"},
        {"type": "function_call_output", "call_id": "call_1", "output": "sunny"},
        {"type": "function_call_output", "call_id": "call_2", "output": hot},
    ]
    await respond(client, input=items, tools=[WEATHER])
    text = prompt_text(client)
    assert f"assistant: I look.\n{HERMES.written([ROME, ROME])}\n" in text
    assert text.endswith(
        "user: <tool_response>\nsunny\n</tool_response>\n<tool_response>\nhot\n</tool_response>\nbot: "
    )
    await respond(client, input=[items[0], said])
    assert prompt_text(client) == "user: Hi\nassistant: I look.\nbot: "


@pytest.mark.parametrize(
    ("choice", "names", "must_call"),
    [
        ("required", ["weather", "f"], True),
        ({"type": "function", "name": "f"}, ["f"], True),
        (
            {"type": "allowed_tools", "mode": "auto", "tools": [{"type": "function", "name": "f"}]},
            ["f"],
            False,
        ),
    ],
)
async def test_who_is_to_be_called(client: Client, choice: Any, names: list[str], must_call: bool) -> None:
    answer = await respond(client, tools=[WEATHER, {"type": "function", "name": "f"}], tool_choice=choice)
    prompt = client.dispatcher.submitted[-1].spec.prompt
    assert prompt is not None
    assert prompt.tools is not None
    assert (prompt.tools.names, prompt.tools.must_call) == (names, must_call)
    assert answer["tool_choice"] == choice


async def test_text_may_have_a_schema(client: Client) -> None:
    schema = {"type": "object", "properties": {"a": {"type": "string"}}}
    options = {"format": {"type": "json_schema", "name": "x", "schema": schema, "strict": True}}
    answer = await respond(client, text=options)
    assert answer["text"]["format"]["schema"] == schema
    grammar = client.dispatcher.submitted[-1].grammar
    assert grammar is not None
    assert "json_schema" in grammar.source
    await respond(client, text={"format": {"type": "json_object"}})
    assert client.dispatcher.submitted[-1].grammar is not None
    await respond(client, text={"format": {"type": "text"}, "verbosity": "low"})
    assert client.dispatcher.submitted[-1].grammar is None


@pytest.mark.parametrize(
    ("more", "param", "message"),
    [
        ({"previous_response_id": "resp_1"}, "previous_response_id", "nothing is stored"),
        ({"conversation": {"id": "c"}}, "conversation", "nothing is stored"),
        ({"background": True}, "background", "nothing is stored"),
        ({"input": None}, "input", ""),
        ({"input": []}, "input", "length >= 1"),
        ({"input": [{"type": "item_reference", "id": "x"}]}, "input[0].type", "item_reference"),
        ({"input": [{"content": "Hi"}]}, "input[0].role", "is missing"),
        ({"input": [{"role": "user"}]}, "input[0].content", "is missing"),
        ({"input": [{"type": "function_call", "name": "f"}]}, "input[0].arguments", "is missing"),
        ({"input": [{"type": "function_call_output"}]}, "input[0].call_id", "is missing"),
        (
            {"input": [{"role": "user", "content": [{"type": "input_image"}]}]},
            "input[0].content",
            "parts of text only, not input_image",
        ),
        ({"max_output_tokens": 10**9}, "max_output_tokens", "must be <="),
        ({"tools": [{"type": "web_search"}]}, "tools[0].type", "web_search"),
        ({"tools": [WEATHER, WEATHER]}, "tools[1].name", "is taken"),
        (
            {"tools": [WEATHER | {"parameters": {"properties": {"a": {"not": {}}}}}]},
            "tools[0].parameters.properties.a.not",
            "is not supported",
        ),
        ({"tools": [WEATHER], "tool_choice": {"type": "function"}}, "tool_choice.name", "is missing"),
        (
            {"tools": [WEATHER], "tool_choice": {"type": "function", "name": "f"}},
            "tool_choice.name",
            "names no function",
        ),
        (
            {"text": {"format": {"type": "json_schema", "schema": {"not": {}}}}},
            "text.format.schema.not",
            "is not supported",
        ),
        ({"reasoning": {"effort": "high"}}, "reasoning", "is not supported"),
        ({"model": "gpt-9"}, "model", "gpt-9"),
    ],
)
async def test_what_is_wrong_is_named(client: Client, more: dict[str, Any], param: str, message: str) -> None:
    status, answer = await client.post(PATH, {"input": "Hi"} | more)
    assert (status, answer["error"]["param"]) == (404 if param == "model" else 400, param), answer
    assert message in answer["error"]["message"]


async def test_a_stream_that_fails_ends_with_its_event(client: Client) -> None:
    client.dispatcher.fails_after = 3
    *others, last = await events(client)
    assert "response.output_text.delta" in [event["type"] for event in others]
    assert (last["type"], last["response"]["status"]) == ("response.failed", "failed")
    assert "died" in last["response"]["error"]["message"]
    assert last["response"]["output"][0]["content"][0]["text"] == "Hel"


async def test_the_sdk_reads_text(client: Client, sdk: openai.AsyncOpenAI) -> None:
    answer = await sdk.responses.create(model="tgi", input="Hi", store=False, metadata={"a": "b"})
    assert answer.output_text == "Hello!"
    assert answer.usage is not None
    assert answer.usage.total_tokens == answer.usage.input_tokens + answer.usage.output_tokens
    async with sdk.responses.stream(model="tgi", input="Hi") as stream:
        kinds = [event.type async for event in stream]
        final = await stream.get_final_response()
    assert kinds == TEXT_EVENTS
    assert final.output_text == "Hello!"


async def test_the_sdk_calls_tools_and_goes_on(client: Client, sdk: openai.AsyncOpenAI) -> None:
    client.dispatcher.says = HERMES.written([ROME])
    talk: list[Any] = [{"role": "user", "content": "Hi"}]
    answer = await sdk.responses.create(model="tgi", input=talk, tools=[WEATHER])
    [call] = answer.output
    assert call.type == "function_call"
    assert (call.name, json.loads(call.arguments)) == ("weather", {"city": "Rome"})
    async with sdk.responses.stream(model="tgi", input=talk, tools=[WEATHER]) as stream:
        received = [event async for event in stream]
        final = await stream.get_final_response()
    deltas = [event.delta for event in received if event.type == "response.function_call_arguments.delta"]
    [again] = final.output
    assert again.type == "function_call"
    assert "".join(deltas) == again.arguments == '{"city": "Rome"}'
    client.dispatcher.says = "It is sunny."
    talk += [*answer.output, {"type": "function_call_output", "call_id": call.call_id, "output": "sunny"}]
    more = await sdk.responses.create(model="tgi", input=talk, tools=[WEATHER])
    assert more.output_text == "It is sunny."
    assert HERMES.written([ROME]) in prompt_text(client)


class Weather(pydantic.BaseModel):
    city: str


async def test_the_sdk_parses_json(client: Client, sdk: openai.AsyncOpenAI) -> None:
    client.dispatcher.says = '{"city": "Rome"}'
    answer = await sdk.responses.parse(model="tgi", input="Where?", text_format=Weather)
    assert answer.output_parsed == Weather(city="Rome")
