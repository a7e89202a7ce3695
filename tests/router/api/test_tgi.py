"""TGI's routes, as a client of TGI sees them."""

import json

import msgspec
import pytest

from router.scheduling.request import Request
from tests.router.http_fakes import EOS, Client, serving

TOKEN_FIELDS = {"id", "text", "logprob", "special", "exit_layer", "confidence"}


def last(client: Client) -> Request:
    return client.dispatcher.submitted[-1]


async def test_generate_gives_the_text_alone(client: Client) -> None:
    assert await client.post("/generate", {"inputs": "Hi"}) == (200, {"generated_text": "Hello!"})


async def test_the_root_route_gives_a_list_of_one(client: Client) -> None:
    assert await client.post("/", {"inputs": "Hi"}) == (200, [{"generated_text": "Hello!"}])


async def test_the_root_route_streams_when_asked(client: Client) -> None:
    events = await client.events("/", {"inputs": "Hi", "stream": True})
    assert json.loads(events[-1])["generated_text"] == "Hello!"


async def test_the_prompt_comes_first_only_when_asked(client: Client) -> None:
    body = {"inputs": "Hi ", "parameters": {"return_full_text": True}}
    assert (await client.post("/generate", body))[1]["generated_text"] == "Hi Hello!"
    events = await client.events("/generate_stream", body)
    assert json.loads(events[-1])["generated_text"] == "Hi Hello!"
    assert json.loads(events[0])["token"]["text"] == "H"


async def test_details_tell_what_was_generated_and_how(client: Client) -> None:
    _, answer = await client.post("/generate", {"inputs": "Hi", "parameters": {"details": True}})
    details = answer["details"]
    assert details["finish_reason"] == "eos_token"
    assert details["generated_tokens"] == len("Hello!") + 1
    assert details["seed"] is None
    assert details["prefill"] == []
    assert [token["text"] for token in details["tokens"]] == [*"Hello!", "<eos>"]
    assert set(details["tokens"][0]) == TOKEN_FIELDS
    assert details["tokens"][-1] | {"id": EOS, "special": True} == details["tokens"][-1]
    assert details["mean_exit_layer"] == 3
    assert details["segments"] == [
        {"model": answer_model(client), "version": "v1", "depth": 4, "from_token": 0}
    ]
    assert "top_tokens" not in details
    assert "best_of_sequences" not in details


def answer_model(client: Client) -> str:
    return client.config.model_name


async def test_prompt_tokens_are_scored_when_asked(client: Client) -> None:
    body = {"inputs": "Hi", "parameters": {"decoder_input_details": True, "max_new_tokens": 1}}
    _, answer = await client.post("/generate", body)
    prefill = answer["details"]["prefill"]
    assert [(token["text"], token["logprob"]) for token in prefill] == [("H", None), ("i", -0.5)]


async def test_alternatives_come_with_each_token(client: Client) -> None:
    parameters = {"top_n_tokens": 2, "max_new_tokens": 1, "details": True}
    _, answer = await client.post("/generate", {"inputs": "Hi", "parameters": parameters})
    [top] = answer["details"]["top_tokens"]
    assert [token["text"] for token in top] == ["H", "I"]
    [event] = await client.events("/generate_stream", {"inputs": "Hi", "parameters": parameters})
    assert json.loads(event)["top_tokens"] == top


@pytest.mark.parametrize("parameters", [None, {}, {"details": None, "stop": None, "seed": None}])
async def test_null_means_the_default(client: Client, parameters: object) -> None:
    status, _ = await client.post("/generate", {"inputs": "Hi", "parameters": parameters})
    assert status == 200
    assert last(client).spec.max_new_tokens == 100


async def test_null_tokens_mean_as_many_as_fit(client: Client) -> None:
    await client.post("/generate", {"inputs": "Hi", "parameters": {"max_new_tokens": None}})
    assert last(client).spec.max_new_tokens == 512 - 2


async def test_the_stop_text_is_kept(client: Client) -> None:
    _, answer = await client.post(
        "/generate", {"inputs": "Hi", "parameters": {"stop": ["ll"], "details": True}}
    )
    assert answer["generated_text"] == "Hell"
    assert answer["details"]["finish_reason"] == "stop_sequence"


async def test_truncate_keeps_the_end_of_the_prompt(client: Client) -> None:
    await client.post("/generate", {"inputs": "abcdef", "parameters": {"truncate": 2}})
    assert client.tokenizer.decode(last(client).spec.prompt_token_ids) == "ef"


async def test_the_best_of_several_is_given_and_the_others_are_shown(client: Client) -> None:
    parameters = {"best_of": 2, "do_sample": True, "details": True}
    status, answer = await client.post("/generate", {"inputs": "Hi", "parameters": parameters})
    assert status == 200
    assert len(answer["details"]["best_of_sequences"]) == 1
    seeds = {request.spec.sampling.seed for request in client.dispatcher.submitted}
    assert len(seeds) == 2


@pytest.mark.parametrize(
    ("parameters", "temperature"),
    [
        ({}, 0),
        ({"temperature": 0}, 0),
        ({"temperature": 0, "do_sample": True}, 0),
        ({"do_sample": True}, 1),
        ({"temperature": 0.7}, 0.7),
        ({"top_k": 5}, 1),
        ({"top_p": 1.0}, 1),
        ({"typical_p": 0.9}, 1),
    ],
)
async def test_sampling_is_asked_for_as_in_tgi(
    client: Client, parameters: dict[str, object], temperature: float
) -> None:
    _, answer = await client.post("/generate", {"inputs": "Hi", "parameters": parameters | {"details": True}})
    assert last(client).spec.sampling.temperature == temperature
    assert (answer["details"]["seed"] is None) == (temperature == 0)


async def test_what_goes_to_the_shard_fits_the_wire(client: Client) -> None:
    parameters = {"top_k": 10**30, "seed": 2**64 - 1, "temperature": 1e308, "max_new_tokens": None}
    assert (await client.post("/generate", {"inputs": "Hi", "parameters": parameters}))[0] == 200
    assert msgspec.msgpack.encode(last(client).spec.sampling)


async def test_a_seed_is_given_back(client: Client) -> None:
    parameters = {"seed": 42, "do_sample": True, "details": True}
    _, answer = await client.post("/generate", {"inputs": "Hi", "parameters": parameters})
    assert answer["details"]["seed"] == 42
    assert last(client).spec.sampling.seed == 42


async def test_our_own_parameters_reach_the_queue(client: Client) -> None:
    parameters = {
        "priority": 3,
        "deadline_ms": 500,
        "exit_threshold": 0.5,
        "exact": True,
        "ignore_eos": True,
        "max_new_tokens": 4,
    }
    await client.post("/generate", {"inputs": "Hi", "parameters": parameters}, headers={"x-request-id": "me"})
    spec, line = last(client).spec, last(client).timeline
    assert (spec.priority, spec.exit_threshold, spec.exact, spec.ignore_eos) == (3, 0.5, True, True)
    assert spec.deadline_s is not None
    assert 0 < spec.deadline_s - line.arrived <= 0.5
    assert spec.label == "me"


async def test_events_have_tgis_shape(client: Client) -> None:
    body = {"inputs": "Hi", "parameters": {"details": True, "max_new_tokens": 3}}
    first, second, third = map(json.loads, await client.events("/generate_stream", body))
    assert [event["index"] for event in (first, second, third)] == [1, 2, 3]
    assert set(first) == {"index", "token", "generated_text", "details"}
    assert set(first["token"]) == TOKEN_FIELDS
    assert first["generated_text"] is None
    assert first["details"] is None
    assert third["generated_text"] == "Hel"
    assert third["details"] == {
        "finish_reason": "length",
        "generated_tokens": 3,
        "seed": None,
        "input_length": 2,
        "cached_tokens": 0,
        "mean_exit_layer": 3,
        "segments": [{"model": answer_model(client), "version": "v1", "depth": 4, "from_token": 0}],
    }


async def test_details_of_a_stream_come_only_when_asked(client: Client) -> None:
    events = await client.events("/generate_stream", {"inputs": "Hi"})
    assert json.loads(events[-1])["details"] is None


async def test_characters_are_streamed_whole(client: Client) -> None:
    client.dispatcher.says = "a€😀"
    events = list(map(json.loads, await client.events("/generate_stream", {"inputs": "Hi"})))
    assert [event["token"]["text"] for event in events] == ["a", "", "", "€", "", "", "", "😀", "<eos>"]
    assert events[-1]["generated_text"] == "a€😀"


async def test_a_character_cut_off_by_the_limit_shows_in_the_last_piece(client: Client) -> None:
    client.dispatcher.says = "a€"
    body = {"inputs": "Hi", "parameters": {"max_new_tokens": 3}}
    events = list(map(json.loads, await client.events("/generate_stream", body)))
    assert "".join(event["token"]["text"] for event in events) == events[-1]["generated_text"] == "a\ufffd"


async def test_headers_tell_times_and_counts(client: Client) -> None:
    async with client.session.post(client.url + "/generate", json={"inputs": "Hi"}) as response:
        headers = response.headers
    assert headers["x-compute-type"] == "sim"
    assert headers["x-prompt-tokens"] == "2"
    assert headers["x-generated-tokens"] == "7"
    assert headers["x-helios-mean-exit-layer"] == "3.000"
    assert headers["x-helios-model"] == answer_model(client)
    assert headers["x-helios-version"] == "v1"
    assert headers["x-request-id"] == "1"
    for part in ("total", "validation", "queue", "inference"):
        assert headers[f"x-{part}-time"].isdecimal()
    assert headers["x-time-per-token"].isdecimal()


async def test_a_stream_has_the_headers_that_are_known_at_its_start(client: Client) -> None:
    async with client.session.post(client.url + "/generate_stream", json={"inputs": "Hi"}) as response:
        headers = response.headers
    assert headers["Cache-Control"] == "no-cache"
    assert headers["x-helios-version"] == "v1"
    assert "x-total-time" not in headers


async def test_a_served_name_is_the_models_name() -> None:
    async with (
        serving(served_model_name=("poet",)) as client,
        client.session.post(client.url + "/generate", json={"inputs": "Hi"}) as response,
    ):
        assert response.headers["x-helios-model"] == "poet"


@pytest.mark.parametrize(
    "body",
    [
        {"inputs": "Hi"},
        {"prompt": "Hi", "max_tokens": 5},
        {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 5},
    ],
)
async def test_invocations_take_any_of_the_bodies(client: Client, body: object) -> None:
    status, answer = await client.post("/invocations", body)
    assert status == 200
    assert "Hello" in json.dumps(answer)


async def test_invocations_without_any_prompt_say_what_is_missing(client: Client) -> None:
    status, answer = await client.post("/invocations", {"text": "Hi"})
    assert status == 422
    assert "`inputs` is missing (or `messages`, or `prompt`)" in answer["error"]


async def test_what_is_no_models_answer_says_so_wherever_it_appears() -> None:
    settings = {"exit_mode": "per_row", "exit_layers": (2,), "replay_exits": "shares.json"}
    async with serving(**settings, model_id="random:opt-1.3b") as client:
        body = {"inputs": "Hi", "parameters": {"details": True}}
        async with client.session.post(client.url + "/generate", json=body) as response:
            assert response.headers["x-helios-exit-replay"] == "true"
            assert response.headers["x-helios-random-weights"] == "true"
            details = (await response.json())["details"]
        *_, last = await client.events("/generate_stream", body)
        for answer in (details, json.loads(last)["details"], (await client.get("/info"))[1]):
            assert (answer["exit_replay"], answer["random_weights"]) == (True, True)
        _, completion = await client.post("/v1/completions", {"model": "tgi", "prompt": "Hi"})
        assert completion["system_fingerprint"] == "helios-v1-exit-replay-random-weights"


async def test_a_models_own_answer_has_no_such_mark(client: Client) -> None:
    body = {"inputs": "Hi", "parameters": {"details": True}}
    async with client.session.post(client.url + "/generate", json=body) as response:
        assert not {"x-helios-exit-replay", "x-helios-random-weights"} & set(response.headers)
        assert not {"exit_replay", "random_weights"} & set((await response.json())["details"])
    assert (await client.get("/info"))[1]["exit_replay"] is False
