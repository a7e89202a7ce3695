"""Tokens of a text and text of tokens."""

import asyncio
import threading

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.router.http_fakes import Client, serving

LOOPS = "{% for a in range(100000) %}{% for b in range(100000) %}{% endfor %}{% endfor %}"
CHAT = {"messages": [{"role": "user", "content": "Hi"}]}


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


async def test_a_long_text_has_all_its_spans(client: Client) -> None:
    text = "hé " * 9_000
    status, spans = await client.post("/tokenize", {"inputs": text})
    assert (status, len(spans)) == (200, 36_000)
    assert spans[-1] == {"id": spans[-1]["id"], "text": " ", "start": 26_999, "stop": 27_000}


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/chat_tokenize", "/invocations"])
async def test_a_template_that_runs_for_ever_is_refused_and_the_server_answers_meanwhile(path: str) -> None:
    async with serving(template=LOOPS) as client:
        chat = asyncio.create_task(client.post(path, CHAT))
        await asyncio.sleep(0.2)
        for _ in range(20):
            async with client.session.get(client.url + "/livez") as response:
                assert response.status == 200
        assert not chat.done()
        status, answer = await chat
        assert (status, answer["error_type"]) == (400 if path.startswith("/v1/") else 422, "validation")
        assert "took longer than 2 s" in str(answer["error"])
        assert (await client.post("/generate", {"inputs": "Hi"}))[0] == 200


@pytest.mark.parametrize(
    ("path", "long", "short"),
    [
        ("/tokenize", {"inputs": "a" * 70_000}, {"inputs": "a"}),
        ("/tokenize", {"prompt": "a" * 70_000}, {"prompt": "a"}),
        ("/detokenize", {"tokens": [1] * 30_000}, {"tokens": [1]}),
        ("/chat_tokenize", {"messages": [{"role": "user", "content": "a" * 70_000}]}, CHAT),
        ("/generate", {"inputs": "a" * 70_000}, {"inputs": "a"}),
        ("/v1/completions", {"prompt": ["a" * 35_000] * 2}, {"prompt": "a"}),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "a" * 70_000}]}, CHAT),
    ],
)
async def test_too_much_to_encode_is_429_on_every_route_and_short_texts_pass(
    path: str, long: object, short: object
) -> None:
    async with serving(payload_limit=200_000) as client:
        held = threading.Event()
        busy = [asyncio.create_task(client.encoding.run(390_000, held.wait)) for _ in range(1)]
        await asyncio.sleep(0)
        async with client.session.post(client.url + path, json=long) as response:
            assert response.status == 429
            assert int(response.headers["Retry-After"]) >= 1
            assert (await response.json())["error_type"] == "overloaded"
        assert (await client.post(path, short))[0] == 200
        held.set()
        await asyncio.gather(*busy)
        assert (await client.post(path, long))[0] in (200, 400, 422)
