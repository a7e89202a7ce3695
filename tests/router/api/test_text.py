"""Tokens of a text and text of tokens."""

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.router.http_fakes import Client


async def test_tgis_body_gives_tokens_with_their_place(client: Client) -> None:
    status, tokens = await client.post("/tokenize", {"inputs": "Hé"})
    assert status == 200
    assert [(token["text"], token["start"], token["stop"]) for token in tokens] == [
        ("H", 0, 1),
        ("é", 1, 2),
        ("é", 1, 2),
    ]


async def test_vllms_body_gives_ids(client: Client) -> None:
    status, answer = await client.post("/tokenize", {"model": "helios", "prompt": "Hé"})
    assert status == 200
    assert answer["count"] == len(answer["tokens"]) == 3
    assert answer["max_model_len"] == 512


async def test_a_body_without_text_says_what_is_missing(client: Client) -> None:
    status, answer = await client.post("/tokenize", {})
    assert status == 422
    assert "`inputs` is missing (or `prompt`, in vLLM's shape)" in answer["error"]


@given(text=st.text(max_size=30))
@settings(max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
async def test_detokenize_undoes_tokenize(client: Client, text: str) -> None:
    _, tokenized = await client.post("/tokenize", {"prompt": text})
    assert await client.post("/detokenize", {"tokens": tokenized["tokens"]}) == (200, {"prompt": text})


async def test_ids_outside_the_vocabulary_are_refused(client: Client) -> None:
    status, answer = await client.post("/detokenize", {"tokens": [1, 257]})
    assert status == 422
    assert "`tokens` holds 257, but token ids are from 0 to 256" in answer["error"]


async def test_a_long_text_is_encoded_like_a_short_one(client: Client) -> None:
    status, answer = await client.post("/tokenize", {"prompt": "ab" * 5000})
    assert (status, answer["count"]) == (200, 10_000)
