"""OpenAI's routes, as a client of OpenAI sees them."""

import json
from typing import Any

import msgspec
import pytest

from tests.router.http_fakes import Client, serving

CHAT = {"messages": [{"role": "user", "content": "Hi"}]}
CHAT_PROMPT = "user: Hi\nbot: "


async def chat(client: Client, **more: Any) -> Any:
    status, answer = await client.post("/v1/chat/completions", CHAT | more)
    assert status == 200, answer
    return answer


async def complete(client: Client, **more: Any) -> Any:
    status, answer = await client.post("/v1/completions", {"prompt": "Hi"} | more)
    assert status == 200, answer
    return answer


async def chunks(client: Client, path: str, body: dict[str, Any]) -> list[Any]:
    """The decoded chunks of a stream that ended well."""
    events = await client.events(path, body | {"stream": True})
    assert events.pop() == "[DONE]"
    return [json.loads(event) for event in events]


def prompts(client: Client) -> list[str]:
    return [client.tokenizer.decode(r.spec.prompt_token_ids) for r in client.dispatcher.submitted]


async def test_a_conversation_is_answered(client: Client) -> None:
    answer = await chat(client)
    assert answer["object"] == "chat.completion"
    assert answer["id"].startswith("chatcmpl-")
    assert answer["model"] == client.config.model_name
    assert answer["system_fingerprint"] == "helios-v1"
    assert answer["choices"] == [
        {
            "index": 0,
            "message": {"role": "assistant", "content": "Hello!"},
            "finish_reason": "stop",
            "logprobs": None,
        }
    ]
    assert answer["usage"] == {
        "prompt_tokens": 14,
        "completion_tokens": 7,
        "total_tokens": 21,
        "prompt_tokens_details": {"cached_tokens": 0},
    }
    assert prompts(client) == [CHAT_PROMPT]


async def test_a_conversation_is_answered_at_any_length_that_fits(client: Client) -> None:
    await chat(client)
    assert client.dispatcher.submitted[-1].spec.max_new_tokens == 512 - len(CHAT_PROMPT)


@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens"])
async def test_an_answer_ends_at_the_limit(client: Client, name: str) -> None:
    [choice] = (await chat(client, **{name: 3}))["choices"]
    assert (choice["message"]["content"], choice["finish_reason"]) == ("Hel", "length")


async def test_parts_of_text_are_one_text(client: Client) -> None:
    content = [{"type": "text", "text": "H"}, {"type": "text", "text": "i"}]
    await chat(client, messages=[{"role": "user", "content": content}])
    assert prompts(client) == [CHAT_PROMPT]


async def test_a_chat_streams_deltas(client: Client) -> None:
    parts = await chunks(client, "/v1/chat/completions", CHAT)
    assert {part["object"] for part in parts} == {"chat.completion.chunk"}
    assert len({part["id"] for part in parts}) == 1
    choices = [part["choices"][0] for part in parts]
    assert [choice["delta"]["content"] for choice in choices] == [*"Hello!", ""]
    assert [choice["delta"].get("role") for choice in choices] == ["assistant"] + [None] * 6
    assert [choice["finish_reason"] for choice in choices] == [None] * 6 + ["stop"]
    assert all(part["usage"] is None for part in parts)


async def test_usage_comes_last_when_asked_for(client: Client) -> None:
    options = {"include_usage": True, "a_key_of_tomorrow": 1}
    *_, last = await chunks(client, "/v1/chat/completions", CHAT | {"stream_options": options})
    assert last["choices"] == []
    assert last["usage"] == {
        "prompt_tokens": 14,
        "completion_tokens": 7,
        "total_tokens": 21,
        "prompt_tokens_details": {"cached_tokens": 0},
    }


@pytest.mark.parametrize("stop", ["lo", ["x", "lo"], ["lo!", "lo"]])
async def test_the_stop_text_is_cut(client: Client, stop: object) -> None:
    [choice] = (await chat(client, stop=stop))["choices"]
    assert (choice["message"]["content"], choice["finish_reason"]) == ("Hel", "stop")


@pytest.mark.parametrize("stop", ["lo", ["el", "lo"], "Hello!"])
async def test_no_part_of_a_stop_text_is_streamed(client: Client, stop: str | list[str]) -> None:
    parts = await chunks(client, "/v1/completions", {"prompt": "Hi", "stop": stop})
    text = "".join(part["choices"][0]["text"] for part in parts)
    [whole] = (await complete(client, stop=stop))["choices"]
    assert text == whole["text"]
    assert not any(part in text for part in ([stop] if isinstance(stop, str) else stop))


async def test_text_that_only_resembled_a_stop_is_streamed_after_all(client: Client) -> None:
    parts = await chunks(client, "/v1/completions", {"prompt": "Hi", "stop": ["l!", "o!x"]})
    assert [part["choices"][0]["text"] for part in parts] == ["H", "e", "", "l", "l", "", "o!"]


@pytest.mark.parametrize("stop", [None, [], ""])
async def test_no_stop_may_be_said_in_many_ways(client: Client, stop: object) -> None:
    assert (await complete(client, stop=stop))["choices"][0]["text"] == "Hello!"


async def test_several_answers_have_other_noise_and_count_the_prompt_once(client: Client) -> None:
    answer = await chat(client, n=3, seed=5)
    assert [choice["index"] for choice in answer["choices"]] == [0, 1, 2]
    assert [r.spec.sampling.seed for r in client.dispatcher.submitted] == [5, 6, 7]
    assert answer["usage"] == {
        "prompt_tokens": 14,
        "completion_tokens": 21,
        "total_tokens": 35,
        "prompt_tokens_details": {"cached_tokens": 0},
    }


async def test_several_answers_stream_side_by_side(client: Client) -> None:
    parts = await chunks(client, "/v1/chat/completions", CHAT | {"n": 2})
    texts, roles = {0: "", 1: ""}, {0: "", 1: ""}
    for part in parts:
        [choice] = part["choices"]
        texts[choice["index"]] += choice["delta"]["content"]
        roles[choice["index"]] += choice["delta"].get("role", "")
    assert texts == {0: "Hello!", 1: "Hello!"}
    assert roles == {0: "assistant", 1: "assistant"}


@pytest.mark.parametrize(("given", "used"), [(None, 1), (0, 0), (0.3, 0.3)])
async def test_temperature_is_one_unless_given(client: Client, given: float | None, used: float) -> None:
    await chat(client, temperature=given)
    assert client.dispatcher.submitted[-1].spec.sampling.temperature == used


async def test_chat_logprobs_give_bytes_and_alternatives(client: Client) -> None:
    client.dispatcher.says = "é"
    [choice] = (await chat(client, logprobs=True, top_logprobs=1, max_tokens=2))["choices"]
    first, second = choice["logprobs"]["content"]
    assert first["bytes"] + second["bytes"] == list("é".encode())
    assert (first["logprob"], first["exit_layer"], first["confidence"]) == (-0.5, 3, 0.9)
    assert first["top_logprobs"] == [{"token": "\ufffd", "logprob": -0.5, "bytes": first["bytes"]}]


async def test_streamed_logprobs_are_those_of_the_whole(client: Client) -> None:
    [choice] = (await chat(client, logprobs=True))["choices"]
    parts = await chunks(client, "/v1/chat/completions", CHAT | {"logprobs": True})
    streamed = [entry for part in parts for entry in part["choices"][0]["logprobs"]["content"]]
    assert streamed == choice["logprobs"]["content"]


async def test_completion_logprobs_are_parallel_lists(client: Client) -> None:
    [choice] = (await complete(client, logprobs=2, max_tokens=2))["choices"]
    assert choice["logprobs"] == {
        "tokens": ["H", "e"],
        "token_logprobs": [-0.5, -0.5],
        "top_logprobs": [{"H": -0.5, "I": -1.5}, {"e": -0.5, "f": -1.5}],
        "text_offset": [0, 1],
        "exit_layers": [3, 3],
        "confidences": [0.9, 0.9],
    }


async def test_logprobs_without_alternatives_name_the_token_itself(client: Client) -> None:
    [choice] = (await complete(client, logprobs=0, max_tokens=1))["choices"]
    assert choice["logprobs"]["top_logprobs"] == [{"H": -0.5}]


async def test_a_prompt_is_scored_without_generating(client: Client) -> None:
    answer = await complete(client, echo=True, logprobs=1, max_tokens=0)
    [choice] = answer["choices"]
    assert choice["text"] == "Hi"
    assert choice["logprobs"] == {
        "tokens": ["H", "i"],
        "token_logprobs": [None, -0.5],
        "top_logprobs": [None, {"i": -0.5}],
        "text_offset": [0, 1],
        "exit_layers": [None, None],
        "confidences": [None, None],
    }
    assert answer["usage"] == {
        "prompt_tokens": 2,
        "completion_tokens": 0,
        "total_tokens": 2,
        "prompt_tokens_details": {"cached_tokens": 0},
    }


async def test_echo_puts_the_prompt_before_text_and_logprobs(client: Client) -> None:
    [choice] = (await complete(client, echo=True, logprobs=0, max_tokens=2))["choices"]
    assert choice["text"] == "HiHe"
    assert choice["logprobs"]["tokens"] == ["H", "i", "H", "e"]
    assert choice["logprobs"]["text_offset"] == [0, 1, 2, 3]
    assert choice["logprobs"]["exit_layers"] == [None, None, 3, 3]


async def test_an_echoed_stream_is_the_echoed_whole(client: Client) -> None:
    body = {"prompt": "Hi", "echo": True, "logprobs": 0, "max_tokens": 2}
    choices = [part["choices"][0] for part in await chunks(client, "/v1/completions", body)]
    [whole] = (await complete(client, **body))["choices"]
    assert "".join(choice["text"] for choice in choices) == whole["text"]
    for name in ("tokens", "token_logprobs", "text_offset", "exit_layers", "confidences"):
        assert [entry for choice in choices for entry in choice["logprobs"][name]] == whole["logprobs"][name]


@pytest.mark.parametrize(
    ("prompt", "texts"),
    [
        ("ab", ["ab"]),
        (["ab", "c"], ["ab", "c"]),
        ([65, 66], [None]),
        ([[65, 66], [67]], [None, None]),
    ],
)
async def test_prompts_come_as_text_or_ids_one_or_several(
    client: Client, prompt: Any, texts: list[str | None]
) -> None:
    answer = await complete(client, prompt=prompt, max_tokens=1, n=2)
    assert [choice["index"] for choice in answer["choices"]] == list(range(2 * len(texts)))
    assert len(client.dispatcher.submitted) == 2 * len(texts)
    if texts[0] is not None:
        assert prompts(client)[::2] == texts
    else:
        ids = [r.spec.prompt_token_ids for r in client.dispatcher.submitted]
        assert ids[0] == [65, 66]


async def test_an_echoed_id_prompt_is_text(client: Client) -> None:
    ids = client.tokenizer.encode("Hi")
    assert (await complete(client, prompt=ids, echo=True, max_tokens=1))["choices"][0]["text"] == "HiH"


async def test_the_best_of_several_completions_are_given(client: Client) -> None:
    answer = await complete(client, best_of=2, n=1)
    assert len(answer["choices"]) == 1
    assert len(client.dispatcher.submitted) == 2
    assert answer["usage"]["completion_tokens"] == 14


async def test_the_end_token_can_be_ignored(client: Client) -> None:
    await complete(client, ignore_eos=True, max_tokens=4)
    assert client.dispatcher.submitted[-1].spec.ignore_eos


async def test_what_neither_dialect_names_is_ignored(client: Client) -> None:
    await complete(client, user="me", metadata={"a": 1}, top_k=-1, response_format={"type": "text"})


@pytest.mark.parametrize("model", ["tgi", "", "helios", None, "dummy", "http://here:80"])
async def test_the_model_field_names_the_deployment(client: Client, model: str | None) -> None:
    await chat(client, model=model)
    await chat(client, model=client.config.model_name)


async def test_models_name_what_is_served(client: Client) -> None:
    status, answer = await client.get("/v1/models")
    assert status == 200
    model, hub = answer["data"]
    assert hub == model | {"id": "HuggingFaceTB/SmolLM2-135M-Instruct"}
    assert (model["id"], model["object"]) == (client.config.model_name, "model")
    assert model["root"] == "HuggingFaceTB/SmolLM2-135M-Instruct"
    assert model["max_model_len"] == 512


async def test_a_hub_model_is_named_by_its_id() -> None:
    async with serving(model_id="someone/poet") as client:
        _, answer = await client.get("/v1/models")
        assert answer["data"][0]["root"] == "someone/poet"
        for name in ("someone/poet", "someone%2Fpoet"):
            status, answer = await client.get(f"/v1/models/{name}")
            assert (status, answer["id"], answer["root"]) == (200, "someone/poet", "someone/poet")


async def test_a_model_that_is_not_served_is_not_found(client: Client) -> None:
    status, answer = await client.get("/v1/models/someone/else")
    assert (status, answer["error"]["code"]) == (404, "model_not_found")


async def test_tools_that_are_not_to_be_called_change_nothing(client: Client) -> None:
    tool = {"type": "function", "function": {"name": "f", "parameters": {}}}
    await chat(client, tools=[tool], tool_choice="none")
    assert prompts(client) == [CHAT_PROMPT]


async def test_a_message_may_have_tool_calls_in_place_of_content() -> None:
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": '{"x": 1}'}}
    messages = [
        {"role": "developer", "content": "Be brief."},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "content": [{"type": "text", "text": "2"}], "tool_call_id": "1"},
    ]
    template = (
        "{% for m in messages %}{{ m.role }}:{{ m.content }}"
        "{% for c in m.tool_calls %}{{ c.function.arguments.x }}{% endfor %}{{ m.tool_call_id }};{% endfor %}"
    )
    async with serving(template=template) as client:
        await chat(client, messages=messages)
        assert prompts(client) == ["system:Be brief.;assistant:1;tool:21;"]


async def test_a_model_without_template_says_so() -> None:
    async with serving(template=None) as client:
        status, answer = await client.post("/v1/chat/completions", CHAT)
        assert status == 400
        assert "no chat template" in answer["error"]["message"]


async def test_chat_tokenize_shows_what_the_model_gets(client: Client) -> None:
    status, answer = await client.post("/chat_tokenize", CHAT)
    assert status == 200
    assert answer["templated_text"] == CHAT_PROMPT
    assert "".join(token["text"] for token in answer["tokenize_response"]) == CHAT_PROMPT


BEGUN = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Well "}]


@pytest.mark.parametrize(
    ("more", "prompt"),
    [
        ({}, "user: Hi\nassistant: Well "),
        ({"continue_final_message": True}, "user: Hi\nassistant: Well "),
        ({"continue_final_message": True, "add_generation_prompt": False}, "user: Hi\nassistant: Well "),
        ({"add_generation_prompt": True}, "user: Hi\nassistant: Well \nbot: "),
        ({"continue_final_message": False}, "user: Hi\nassistant: Well \nbot: "),
        ({"add_generation_prompt": False}, "user: Hi\nassistant: Well \n"),
    ],
)
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/chat_tokenize"])
async def test_what_the_assistant_began_is_gone_on_with_unless_asked_otherwise(
    client: Client, path: str, more: dict[str, Any], prompt: str
) -> None:
    status, answer = await client.post(path, {"messages": BEGUN} | more)
    assert status == 200, answer
    assert (answer["templated_text"] if path == "/chat_tokenize" else prompts(client)[-1]) == prompt


async def test_what_another_began_is_gone_on_with_when_asked() -> None:
    async with serving() as client:
        await chat(client, continue_final_message=True)
        assert prompts(client) == ["user: Hi"]


async def test_a_call_of_a_tool_is_not_gone_on_with(client: Client) -> None:
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    await chat(client, messages=[{"role": "assistant", "content": "", "tool_calls": [call]}])
    [prompt] = prompts(client)
    assert prompt.startswith("assistant: <tool_call>")
    assert prompt.endswith("\nbot: ")


async def test_a_client_sets_variables_of_the_template() -> None:
    async with serving(template="{{ mood or 'calm' }}{{ messages[0].reasoning_content }}") as client:
        message = {"role": "user", "content": "Hi", "reasoning_content": "!"}
        await chat(client, messages=[message], chat_template_kwargs={"mood": "glad"})
        await chat(client, messages=[message], chat_template_kwargs={})
        assert prompts(client) == ["glad!", "calm!"]


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions"])
async def test_every_chunk_is_written_as_the_first_is(client: Client, path: str) -> None:
    client.dispatcher.says = 'a"\\\n\0é{'
    body = {"messages": [{"role": "user", "content": "Hi"}]} if "chat" in path else {"prompt": "Hi"}
    plain = await client.events(path, body | {"stream": True})
    logprobs = {"logprobs": True} if "chat" in path else {"logprobs": 1}
    detailed = await client.events(path, body | {"stream": True} | logprobs)
    assert "".join(map(_text_of_chunk, plain[:-1])) == client.dispatcher.says
    for brief, full in zip(plain[1:-1], detailed[1:-1], strict=True):
        chunk, other = json.loads(brief), json.loads(full)
        other["choices"][0]["logprobs"] = None
        assert list(chunk) == list(other)
        assert chunk["choices"] == other["choices"]
        assert msgspec.json.encode(chunk).decode() == brief


def _text_of_chunk(event: str) -> str:
    [choice] = json.loads(event)["choices"]
    return str(choice["delta"]["content"] if "delta" in choice else choice["text"])
