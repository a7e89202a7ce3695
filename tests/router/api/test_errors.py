"""Whatever is wrong with a call has its status and a message that says what; the server serves on."""

import gzip
import io
from typing import Any

import aiohttp.compression_utils
import pytest

from router.scheduling.request import GenerationFailed
from tests.router.http_fakes import Client, ask, serving

CHAT = {"messages": [{"role": "user", "content": "Hi"}]}
JSON = {"Content-Type": "application/json"}
ROUTES = ("/", "/generate", "/generate_stream", "/v1/chat/completions", "/v1/completions", "/invocations")


async def refused(client: Client, path: str, body: Any) -> tuple[int, str, dict[str, Any]]:
    """Status, message and error_type of a refusal, whichever the dialect; then checks that it serves on."""
    kind = {"json": body} if not isinstance(body, bytes) else {"data": io.BytesIO(body), "headers": JSON}
    async with client.session.post(client.url + path, **kind) as response:
        assert response.content_type == "application/json"
        answer = await response.json()
    error = answer["error"]
    if path.startswith("/v1"):
        assert set(error) == {"message", "type", "param", "code"}
    message = error["message"] if isinstance(error, dict) else error
    assert (await client.post("/generate", {"inputs": "Hi"}))[0] == 200
    return response.status, message, answer


def tgi(**parameters: Any) -> dict[str, Any]:
    return {"inputs": "Hi", "parameters": parameters}


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"best_of": 0}, "`parameters.best_of`: expected `int` >= 1"),
        ({"best_of": 3, "do_sample": True}, "`best_of` must be > 0 and <= 2. Given: 3"),
        ({"best_of": 2}, "`best_of` > 1 needs sampling"),
        ({"best_of": 2, "do_sample": True, "seed": 1}, "`seed` must not be set when `best_of` > 1"),
        ({"temperature": -1}, "`parameters.temperature`: expected `float` >= 0"),
        ({"temperature": "hot"}, "`parameters.temperature`: expected `float | null`, got `str`"),
        ({"top_k": 0}, "`parameters.top_k`: expected `int` >= 1"),
        ({"top_p": 0}, "`parameters.top_p`: expected `float` > 0"),
        ({"top_p": 1.1}, "`parameters.top_p`: expected `float` <= 1"),
        ({"typical_p": 0}, "`parameters.typical_p`: expected `float` > 0"),
        ({"repetition_penalty": 0}, "`parameters.repetition_penalty`: expected `float` > 0"),
        ({"frequency_penalty": 2.5}, "`parameters.frequency_penalty`: expected `float` <= 2"),
        ({"presence_penalty": -2.5}, "`parameters.presence_penalty`: expected `float` >= -2"),
        ({"max_new_tokens": 0}, "`parameters.max_new_tokens`: expected `int` >= 1"),
        ({"max_new_tokens": 1.5}, "`parameters.max_new_tokens`: expected `int | null`, got `float`"),
        (
            {"max_new_tokens": 10**9},
            "`max_new_tokens` must be <= 510: this model's maximum context length is 512 tokens, of which "
            "the prompt takes 2. Given: 1000000000",
        ),
        ({"max_new_tokens": 10**30}, "`max_new_tokens` must be <= 510"),
        ({"stop": ["a"] * 5}, "`stop` takes up to 4 strings. Given: 5"),
        ({"stop": [""]}, "`stop` must not hold an empty string"),
        ({"stop": ["a" * 2000]}, "`stop` strings must have at most 1024 characters"),
        ({"stop": [1]}, "`parameters.stop[0]`: expected `str`, got `int`"),
        ({"truncate": 0}, "`parameters.truncate`: expected `int` >= 1"),
        ({"truncate": 513}, "`truncate` must be <= 511. Given: 513"),
        ({"seed": -1}, "`parameters.seed`: expected `int` >= 0"),
        ({"seed": 2**64}, "`seed` must be <= 18446744073709551615"),
        ({"top_n_tokens": 6}, "`top_n_tokens` must be <= 5. Given: 6"),
        ({"details": 1}, "`parameters.details`: expected `bool | null`, got `int`"),
        ({"watermark": True}, "`watermark` is not supported: no watermark is put into text"),
        ({"grammar": {"type": "regex", "value": "(a"}}, "`grammar.value` is not supported: unclosed group"),
        (
            {"response_format": {"type": "json_object"}},
            "`response_format` is not supported: it is `grammar` on",
        ),
        ({"adapter_id": "a"}, "`adapter_id` is not supported: no adapters are served"),
        ({"logit_bias": {"5": 101}}, "`parameters.logit_bias[...]`: expected `float` <= 100"),
        ({"logit_bias": {"a": 1}}, "`parameters.logit_bias`: a key: expected `int`, got `str`"),
        ({"logit_bias": {"257": 1}}, "`logit_bias` holds 257, but token ids are from 0 to 256"),
        ({"logit_bias": {"-1": 1}}, "`logit_bias` holds -1"),
        ({"stop_token_ids": [257]}, "`stop_token_ids` holds 257"),
        ({"allowed_token_ids": [10**30]}, "`allowed_token_ids` holds 1000"),
        ({"allowed_token_ids": []}, "`parameters.allowed_token_ids`: expected `array` of length >= 1"),
        ({"bad_words": [""]}, "`parameters.bad_words[0]`: expected `str` of length >= 1"),
        ({"bad_words": ["a"] * 129}, "`parameters.bad_words`: expected `array` of length <= 128"),
        ({"min_tokens": 11, "max_new_tokens": 10}, "`min_tokens` must be <= 10, the most there may be"),
        ({"min_p": 1.1}, "`parameters.min_p`: expected `float` <= 1"),
        ({"exit_threshold": 1.5}, "`parameters.exit_threshold`: expected `float` <= 1"),
        ({"deadline_ms": 0}, "`parameters.deadline_ms`: expected `int` >= 1"),
    ],
)
@pytest.mark.parametrize("path", ["/generate", "/generate_stream"])
async def test_native_parameters_have_their_bounds(
    client: Client, path: str, parameters: dict[str, Any], message: str
) -> None:
    if path == "/generate_stream" and parameters.get("best_of", 0) > 1:
        message = "`best_of` > 1 is not supported when streaming"
    status, text, answer = await refused(client, path, tgi(**parameters))
    assert status == 422
    assert text.startswith("Input validation error: " + message)
    assert answer["error_type"] == "validation"


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({}, "`inputs` is missing"),
        ({"inputs": None}, "`inputs`: expected `str`, got `null`"),
        ({"inputs": 5}, "`inputs`: expected `str`, got `int`"),
        ({"inputs": ""}, "`inputs` cannot be empty"),
        (
            {"inputs": "a" * 512},
            "`inputs` must have at most 511 tokens: this model's maximum context length is 512 tokens. "
            "Given: 512",
        ),
        ({"inputs": "Hi", "parameters": []}, "`parameters`: expected `object | null`, got `array`"),
        ([], "The body: expected `object`, got `array`"),
        ("Hi", "The body: expected `object`, got `str`"),
    ],
)
async def test_native_bodies_have_their_shape(client: Client, body: Any, message: str) -> None:
    status, text, _ = await refused(client, "/generate", body)
    assert (status, text) == (422, "Input validation error: " + message)


@pytest.mark.parametrize(
    ("more", "param", "message"),
    [
        ({"messages": []}, "messages", "expected `array` of length >= 1"),
        ({"messages": [{"content": "Hi"}]}, "messages[0].role", "is missing"),
        ({"messages": [{"role": ""}]}, "messages[0].role", "length >= 1"),
        (
            {
                "messages": [
                    {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "{"}}]}
                ]
            },
            "messages[0].tool_calls.function.arguments",
            "is not JSON",
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]},
            "messages[0].content",
            "parts of type text only, not image_url",
        ),
        ({"messages": [{"role": "user", "content": "a" * 600}]}, "messages", "at most 511 tokens"),
        ({"max_tokens": 10**9}, "max_tokens", "must be <= 498"),
        ({"max_tokens": 0}, "max_tokens", ">= 1"),
        ({"n": 0}, "n", ">= 1"),
        ({"n": 129}, "n", "<= 128"),
        ({"stop": ["a"] * 129}, "stop", "up to 128"),
        ({"top_logprobs": 2}, "top_logprobs", "needs `logprobs`"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs", "<= 20"),
        ({"functions": [{"name": "f"}]}, "functions", "is not supported: it is `tools`"),
        ({"function_call": {"name": "f"}}, "function_call", "is not supported: it is `tool_choice`"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema.schema", "is missing"),
        ({"response_format": {"type": "structural_tag"}}, "response_format.type", "invalid value"),
        ({"grammar": {"type": "regex", "value": "a"}}, "grammar", "`response_format` on /v1"),
        ({"min_tokens": 6, "max_tokens": 5}, "min_tokens", "must be <= 5"),
        (
            {"continue_final_message": True, "add_generation_prompt": True},
            "continue_final_message",
            "and `add_generation_prompt` exclude each other",
        ),
        (
            {"chat_template_kwargs": {"tools": []}},
            "chat_template_kwargs.tools",
            "is not for the client",
        ),
        (
            {"messages": [{"role": "assistant", "audio": {"id": "x"}}]},
            "messages[0].audio",
            "is not supported: messages are text",
        ),
        ({"temperature": -0.1}, "temperature", ">= 0"),
        ({"seed": 2**70}, "seed", "must be <="),
    ],
)
async def test_chat_fields_have_their_bounds(
    client: Client, more: dict[str, Any], param: str, message: str
) -> None:
    status, text, answer = await refused(client, "/v1/chat/completions", CHAT | more)
    assert status == 400
    assert message in text
    assert answer["error"]["param"] == param
    assert answer["error"]["type"] == "invalid_request_error"
    assert answer["error_type"] == "validation"


@pytest.mark.parametrize(
    ("more", "param", "message"),
    [
        ({"prompt": []}, "prompt", "must be text, token ids"),
        ({"prompt": ["a", 1]}, "prompt", "must be text, token ids"),
        (
            {"prompt": ["a"] * 301},
            "prompt",
            "for 301 answers of about 301 prompt tokens at once: the queue holds 300",
        ),
        ({"prompt": [257]}, "prompt", "holds 257, but token ids are from 0 to 256"),
        ({"prompt": [-1]}, "prompt", "holds -1"),
        ({"prompt": [[1.5]]}, "prompt[0][0]", "expected `int`"),
        ({"prompt": ""}, "prompt", "cannot be empty"),
        ({"prompt": "a" * 512}, "prompt", "at most 511 tokens"),
        ({"suffix": "x"}, "suffix", "is not supported"),
        ({"logprobs": 21}, "logprobs", "<= 20"),
        ({"best_of": 1, "n": 2}, "best_of", "must be >= `n`"),
        ({"best_of": 2, "n": 1, "stream": True}, "best_of", "not supported when streaming"),
        ({"prompt": ["a", "b", "c"], "n": 101}, "prompt", "for 303 answers"),
    ],
)
async def test_completion_fields_have_their_bounds(
    client: Client, more: dict[str, Any], param: str, message: str
) -> None:
    status, text, answer = await refused(client, "/v1/completions", {"prompt": "Hi"} | more)
    assert status == 400
    assert message in text
    assert answer["error"]["param"] == param


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "a" * 600}]}, "messages"),
        ("/v1/chat/completions", CHAT | {"max_tokens": 600}, "max_tokens"),
        ("/v1/completions", {"prompt": "a" * 600}, "prompt"),
        ("/v1/completions", {"prompt": "a", "max_tokens": 600}, "max_tokens"),
    ],
)
async def test_a_context_overflow_is_known_by_its_code_and_its_words(
    client: Client, path: str, body: dict[str, Any], param: str
) -> None:
    status, message, answer = await refused(client, path, body)
    assert status == 400
    assert "this model's maximum context length is 512 tokens" in message
    assert (answer["error"]["code"], answer["error"]["param"]) == ("context_length_exceeded", param)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"", "The body is empty"),
        (b"  \n", "The body is empty"),
        (b"{", "not valid JSON"),
        (b'{"inputs": "Hi", "parameters": {"temperature": NaN}}', "not valid JSON"),
        (b'{"inputs": "Hi", "parameters": {"temperature": Infinity}}', "not valid JSON"),
        (b'{"inputs": "\xff\xfe"}', "not valid JSON"),
        (b'{"inputs": "\\ud800"}', "not valid JSON"),
        (b'{"inputs": "a\x00b"}', "not valid JSON"),
        (b'\xef\xbb\xbf{"inputs": "Hi"}', "not valid JSON"),
        (b'{"x": ' + b"[" * 100_000, "nested too deeply"),
    ],
    ids=["empty", "blank", "cut", "nan", "inf", "utf-8", "surrogate", "control", "bom", "deep"],
)
@pytest.mark.parametrize("path", ROUTES)
async def test_what_is_not_json_is_400(client: Client, path: str, body: bytes, message: str) -> None:
    status, text, answer = await refused(client, path, body)
    assert status == 400
    assert message in text
    assert answer["error_type"] == "malformed"


async def test_a_number_too_large_for_a_float_is_422(client: Client) -> None:
    status, message, _ = await refused(
        client, "/generate", b'{"inputs": "Hi", "parameters": {"temperature": 1e999}}'
    )
    assert status == 422
    assert "`parameters.temperature`: number out of range" in message


@pytest.mark.parametrize("path", ROUTES)
async def test_a_body_over_the_limit_is_413(client: Client, path: str) -> None:
    status, message, _ = await refused(client, path, b'{"inputs": "' + b"a" * 3_000_000 + b'"}')
    assert (status, message) == (413, "The body must be at most 2000000 bytes.")


async def test_a_body_of_unknown_length_over_the_limit_is_413(client: Client) -> None:
    async def parts() -> Any:
        for _ in range(30):
            yield b"a" * 100_000

    async with client.session.post(client.url + "/generate", data=parts(), headers=JSON) as response:
        assert response.status == 413
        assert (await response.json())["error_type"] == "payload_too_large"


@pytest.mark.parametrize("packed", ["gzip", "deflate", "br", "zstd", "GZIP", "gzip, identity", "none"])
@pytest.mark.parametrize("path", ROUTES)
async def test_a_packed_body_is_415_and_never_unpacked(client: Client, path: str, packed: str) -> None:
    headers = JSON | {"Content-Encoding": packed}
    bomb = gzip.compress(b'{"inputs": "' + b"a" * 10_000_000 + b'"}')
    async with client.session.post(client.url + path, data=bomb, headers=headers) as response:
        assert response.status == 415
        assert (await response.json())["error_type"] == "content_encoding"
        assert response.headers["Accept-Encoding"] == "identity"


async def test_a_body_is_not_unpacked_for_those_who_are_refused_anyway(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    unpacked: list[bytes] = []
    monkeypatch.setattr(aiohttp.compression_utils.ZLibDecompressor, "decompress_sync", unpacked.append)
    headers = JSON | {"Content-Encoding": "gzip"}
    async with serving(api_key="secret") as client:
        for method, path, status in [
            ("POST", "/generate", 401),
            ("POST", "/nowhere", 404),
            ("DELETE", "/generate", 405),
        ]:
            call = client.session.request(
                method, client.url + path, data=gzip.compress(b"{}"), headers=headers
            )
            async with call as response:
                assert response.status == status
    assert unpacked == []


async def test_a_body_that_says_it_is_not_packed_is_taken(client: Client) -> None:
    headers = {"Content-Encoding": "identity"}
    assert (await client.post("/generate", {"inputs": "Hi"}, headers=headers))[0] == 200


@pytest.mark.parametrize("path", ROUTES)
async def test_another_media_type_is_415(client: Client, path: str) -> None:
    headers = {"Content-Type": "text/plain"}
    async with client.session.post(client.url + path, data=b'{"inputs": "Hi"}', headers=headers) as response:
        assert response.status == 415
        assert "text/plain" in await response.text()
        assert response.content_type == "application/json"


@pytest.mark.parametrize(
    ("method", "path", "status", "kind"),
    [
        ("GET", "/nowhere", 404, "not_found"),
        ("GET", "/v1/nowhere", 404, "not_found"),
        ("GET", "/generate", 405, "method_not_allowed"),
        ("DELETE", "/v1/models", 405, "method_not_allowed"),
    ],
)
async def test_wrong_routes_and_methods_are_told_in_json(
    client: Client, method: str, path: str, status: int, kind: str
) -> None:
    async with client.session.request(method, client.url + path) as response:
        answer = await response.json()
        assert response.status == status
        assert answer["error_type"] == kind
        assert isinstance(answer["error"], dict) == path.startswith("/v1")
        assert ("Allow" in response.headers) == (status == 405)


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions", "/tokenize", "/detokenize"])
async def test_an_unknown_model_is_404_and_the_known_ones_are_named(client: Client, path: str) -> None:
    bodies: dict[str, dict[str, Any]] = {"/tokenize": {"prompt": "Hi"}, "/detokenize": {"tokens": [1]}}
    body = bodies.get(path) or ask(path)
    status, message, _ = await refused(client, path, body | {"model": "gpt-9"})
    assert status == 404
    assert "`gpt-9` is not served here" in message
    assert client.config.model_name in message


@pytest.mark.parametrize("path", ROUTES)
async def test_overload_is_refused_before_encoding(client: Client, path: str) -> None:
    client.dispatcher.refuses = GenerationFailed("Model is overloaded", "overloaded", 429, retry_after_s=7)
    body = {"inputs": "a" * 400}
    if "chat" in path:
        body = {"messages": [{"role": "user", "content": "a" * 400}]}  # type: ignore[dict-item]
    elif path == "/v1/completions":
        body = {"prompt": "a" * 400}
    async with client.session.post(client.url + path, json=body) as response:
        assert response.status == 429
        assert response.headers["Retry-After"] == "7"
        assert (await response.json())["error_type"] == "overloaded"
    assert client.dispatcher.admitted == [(101, 1)]
    assert client.dispatcher.submitted == []


async def test_all_prompts_and_answers_of_a_call_are_admitted_together(client: Client) -> None:
    await client.post("/v1/completions", {"prompt": ["a" * 40, "b" * 80], "n": 2})
    assert client.dispatcher.admitted == [(2 * (11 + 21), 4)]


@pytest.mark.parametrize("path", ROUTES[:3])
async def test_while_loading_generations_are_told_to_come_again(client: Client, path: str) -> None:
    client.dispatcher.limits = None
    async with client.session.post(client.url + path, json={"inputs": "Hi"}) as response:
        assert response.status == 429
        assert "Retry-After" in response.headers


@pytest.mark.parametrize("path", ROUTES)
async def test_a_failure_before_the_first_token_has_its_status_on_streams_too(
    client: Client, path: str
) -> None:
    client.dispatcher.fails_after = 0
    status, answer = await client.post(path, ask(path) | {"stream": True})
    assert status == 424
    assert answer["error_type"] == "generation"


async def test_exact_needs_all_layers(client: Client) -> None:
    import msgspec

    assert client.dispatcher.limits is not None
    client.dispatcher.limits = msgspec.structs.replace(client.dispatcher.limits, depth=2)
    status, message, _ = await refused(client, "/generate", tgi(exact=True))
    assert status == 422
    assert "`exact` needs all 4 layers, and no shard has more than 2" in message


async def test_a_fault_of_ours_is_500_in_json(client: Client) -> None:
    client.dispatcher.submit = None  # type: ignore[method-assign,assignment]
    status, answer = await client.post("/generate", {"inputs": "Hi"})
    assert (status, answer["error_type"]) == (500, "incomplete_generation")


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/generate", {"inputs": "Hi <beyond>"}),
        ("/generate_stream", {"inputs": "Hi <beyond>"}),
        ("/v1/completions", {"prompt": ["Hi", "<beyond>"]}),
        ("/v1/completions", {"prompt": [[72, 257]]}),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "<beyond>"}]}),
    ],
)
async def test_a_token_that_the_model_has_no_embedding_for_is_refused(
    client: Client, path: str, body: dict[str, Any]
) -> None:
    client.tokenizer.backend.add_special_tokens(["<beyond>"])
    status, message, _ = await refused(client, path, body)
    assert status in (400, 422)
    assert "257" in message
    assert [request.prompt_token_ids for request in client.dispatcher.submitted] == [[39, 72]]
