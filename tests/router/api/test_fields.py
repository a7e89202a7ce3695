"""What becomes of every field that a client may send: honoured, harmless, or refused by name."""

import json
from pathlib import Path
from typing import Any, get_type_hints

import pytest
from huggingface_hub.inference._generated.types import chat_completion, text_generation
from openai.types import completion_create_params
from openai.types.chat import completion_create_params as chat_create_params
from openai.types.responses import response_create_params

from router.api.fields import CHAT, COMPLETION, DIALECTS, HARMLESS, REFUSED, RESPONSES, TGI, Dialect
from router.api.parameters_page import page
from tests.router.http_fakes import Client, ask

PATHS = [dialect.name for dialect in DIALECTS]
BY_PATH = {dialect.name: dialect for dialect in DIALECTS}
LITTLE = {"value": ["something"]}  # that no field takes for nothing


def honoured_by(dialect: Dialect) -> set[str]:
    return set((dialect.parameters or dialect.body).__struct_fields__)


def refused_by(dialect: Dialect) -> list[str]:
    return sorted(REFUSED.keys() - honoured_by(dialect) - set(dialect.body.__struct_fields__))


def test_no_field_has_two_fates() -> None:
    assert not REFUSED.keys() & HARMLESS.keys()


@pytest.mark.parametrize(
    ("fields", "dialect"),
    [
        (get_type_hints(chat_create_params.CompletionCreateParamsBase), CHAT),
        (get_type_hints(completion_create_params.CompletionCreateParamsBase), COMPLETION),
        (get_type_hints(response_create_params.ResponseCreateParamsBase), RESPONSES),
        (chat_completion.ChatCompletionInput.__dataclass_fields__, CHAT),
        (text_generation.TextGenerationInputGenerateParameters.__dataclass_fields__, TGI),
    ],
    ids=["openai chat", "openai completions", "openai responses", "hub chat", "hub text"],
)
def test_every_field_of_the_clients_has_a_fate(fields: dict[str, Any], dialect: Dialect) -> None:
    assert fields.keys() <= honoured_by(dialect) | REFUSED.keys() | HARMLESS.keys()


@pytest.mark.parametrize("path", PATHS)
async def test_what_would_change_the_text_is_refused_by_name(client: Client, path: str) -> None:
    for name in refused_by(BY_PATH[path]):
        status, answer = await client.post(path, ask(path, **{name: LITTLE}))
        error = answer["error"]
        message = error["message"] if path.startswith("/v1/") else error
        assert (status, answer["error_type"]) == (400 if path.startswith("/v1/") else 422, "validation"), name
        assert f"`{name}` is not supported: " in message
        if path.startswith("/v1/"):
            assert error["param"] == name
    assert client.dispatcher.submitted == []


@pytest.mark.parametrize("path", PATHS)
async def test_values_that_change_nothing_are_taken(client: Client, path: str) -> None:
    for name in refused_by(BY_PATH[path]):
        for value in REFUSED[name].accepted:
            status, answer = await client.post(path, ask(path, **{name: value}))
            assert status == 200, (name, value, answer)


@pytest.mark.parametrize("path", PATHS)
async def test_what_changes_nothing_is_taken_known_or_not(client: Client, path: str) -> None:
    own = honoured_by(BY_PATH[path])
    fields = {name: LITTLE for name in HARMLESS if name not in own} | {"a_field_of_tomorrow": LITTLE}
    status, answer = await client.post(path, ask(path, **fields))
    assert status == 200, answer


@pytest.mark.parametrize(
    ("value", "is_taken"), [(1, True), (1.0, True), (True, False), (0, False), (2, False), ("1", False)]
)
async def test_neutral_values_compare_as_json(client: Client, value: Any, is_taken: bool) -> None:
    status, _ = await client.post("/generate", ask("/generate", num_beams=value))
    assert status == (200 if is_taken else 422)


@pytest.mark.parametrize(
    "name", ["temperature", "max_new_tokens", "stop", "details", "tools", "guided_json", "max_tokens"]
)
@pytest.mark.parametrize("path", ["/", "/generate", "/generate_stream", "/invocations"])
async def test_nothing_stands_beside_the_parameters(client: Client, path: str, name: str) -> None:
    status, answer = await client.post(path, ask(path) | {name: [1]})
    assert status == 422
    assert f"`{name}`" in answer["error"]
    async with client.session.post(client.url + path, json=ask(path) | {name: None}) as response:
        assert response.status == 200


async def test_tools_may_stand_where_none_is_to_be_called(client: Client) -> None:
    path, tools = "/v1/completions", [{"type": "function", "function": {"name": "f"}}]
    for choice in ("auto", None):
        assert (await client.post(path, ask(path, tools=tools, tool_choice=choice)))[0] == 400
    for more in ({"tool_choice": "none"}, {"tool_choice": "none", "parallel_tool_calls": False}):
        assert (await client.post(path, ask(path, tools=tools, **more)))[0] == 200
    assert (await client.post(path, ask(path, functions=[{"name": "f"}], function_call="none")))[0] == 200


def test_the_documented_parameters_are_these() -> None:
    path = Path(__file__).parents[3] / "docs" / "parameters.md"
    assert path.read_text(encoding="utf-8") == page(), "run: make docs"


async def test_the_last_of_two_equal_keys_counts(client: Client) -> None:
    """As it does for the fields that are honoured."""
    head = json.dumps({"inputs": "Hi"})[:-1]
    for first, last, status in (("[1]", "null", 200), ("null", "[1]", 422)):
        body = f'{head}, "parameters": {{"tools": {first}, "tools": {last}}}}}'
        async with client.session.post(
            client.url + "/generate", data=body, headers={"Content-Type": "application/json"}
        ) as response:
            assert response.status == status
