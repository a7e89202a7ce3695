"""Constraints through a whole server: real processes, a tiny model that writes noise, unchanged clients."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import jsonschema_rs
import pytest
from huggingface_hub import InferenceClient
from openai import BadRequestError, OpenAI
from pydantic import BaseModel, Field

from tests.running import Server

MESSAGES: list[Any] = [{"role": "user", "content": "Say something of a pet."}]
SEEDS = range(6)


class Cat(BaseModel):
    kind: Literal["cat"]
    lives: int = Field(ge=1, le=9)


class Dog(BaseModel):
    kind: Literal["dog"]
    names: list[Literal["Rex", "Bello"]] = Field(max_length=3)


class Owner(BaseModel):
    name: str = Field(max_length=8)
    pet: Cat | Dog = Field(discriminator="kind")
    phone: str | None = Field(pattern=r"^[0-9]{3}-[0-9]{4}$")


SCHEMA = Owner.model_json_schema()


@pytest.fixture(scope="module")
def server(serve: Callable[..., Server], tiny_model: Callable[[str], Path]) -> Server:
    return serve(
        model_id=tiny_model("llama"),
        device="cpu",
        dtype="float32",
        num_threads=1,
        kv_cache_bytes="16MiB",
        redis_url="redis://127.0.0.1:1",
    )


@pytest.fixture
def openai(server: Server) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{server.url}/v1", api_key="-", max_retries=0) as client:
        yield client


def test_openais_sdk_parses_what_pydantic_describes(openai: OpenAI) -> None:
    for seed in SEEDS:
        answer = openai.chat.completions.parse(model="", messages=MESSAGES, response_format=Owner, seed=seed)
        assert isinstance(answer.choices[0].message.parsed, Owner)
        assert answer.choices[0].finish_reason == "stop"


def test_a_stream_says_the_same(openai: OpenAI) -> None:
    asked: dict[str, Any] = {"model": "", "messages": MESSAGES, "response_format": Owner, "seed": 1}
    whole = openai.chat.completions.parse(**asked).choices[0].message.parsed
    with openai.chat.completions.stream(**asked) as stream:
        streamed = stream.get_final_completion().choices[0].message.parsed
    assert streamed == whole


def test_an_answer_that_is_cut_off_says_so(openai: OpenAI) -> None:
    answer = openai.chat.completions.create(
        model="", messages=MESSAGES, extra_body={"guided_json": SCHEMA}, max_tokens=4
    )
    assert answer.choices[0].finish_reason == "length"


def test_hugging_faces_client_says_it_its_own_way(server: Server) -> None:
    client = InferenceClient(base_url=server.url)
    formats: list[Any] = [
        {"type": "json_schema", "json_schema": {"name": "owner", "schema": SCHEMA, "strict": True}},
        {"type": "json", "value": SCHEMA},
    ]
    answers = [
        client.chat_completion(MESSAGES, response_format=said, seed=3, max_tokens=200)
        .choices[0]
        .message.content
        for said in formats
    ]
    answers.append(client.text_generation("A pet:", grammar=formats[1], max_new_tokens=200))
    for answer in answers:
        jsonschema_rs.validate(SCHEMA, json.loads(str(answer)))


def test_vllms_fields_choose_match_and_spell(openai: OpenAI) -> None:
    def complete(**more: Any) -> str:
        answer = openai.completions.create(model="", prompt="Well,", extra_body=more, max_tokens=60)
        assert answer.choices[0].finish_reason == "stop"
        return answer.choices[0].text

    assert complete(guided_choice=["yes", "no"]) in ("yes", "no")
    assert complete(structured_outputs={"choice": ["é😀", " ß"]}) in ("é😀", " ß")
    number = complete(guided_regex="[0-9]{3}")
    assert len(number) == 3 and number.isdecimal()
    assert complete(guided_grammar='start: "a" ("b" | "c")') in ("ab", "ac")
    assert complete(guided_grammar='root ::= "a" ("b" | "c")') in ("ab", "ac")


def test_what_is_not_supported_is_refused_by_its_path(openai: OpenAI) -> None:
    schema = {"type": "object", "properties": {"tags": {"type": "array", "uniqueItems": True}}}
    with pytest.raises(
        BadRequestError, match=r"`guided_json\.properties\.tags\.uniqueItems` is not supported"
    ):
        openai.chat.completions.create(model="", messages=MESSAGES, extra_body={"guided_json": schema})
