"""Clients that people use, against the running server: what works elsewhere works here."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import huggingface_hub
import openai
import pytest
from huggingface_hub.errors import ValidationError

from tests.running import Server

MESSAGES: list[Any] = [{"role": "user", "content": "Once upon a time"}]
PROMPT = "Once upon a time"


@pytest.fixture(scope="module")
def server(serve: Callable[..., Server], tiny_model: Callable[[str], Path]) -> Iterator[Server]:
    model = tiny_model("llama")
    with serve(model_id=model, device="cpu", dtype="float32", served_model_name="tiny") as server:
        yield server


@pytest.fixture
def hub(server: Server) -> huggingface_hub.InferenceClient:
    return huggingface_hub.InferenceClient(base_url=server.url)


@pytest.fixture
def sdk(server: Server) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        yield client


class TestHuggingfaceHub:
    """`huggingface_hub.InferenceClient`."""

    def test_text(self, hub: huggingface_hub.InferenceClient) -> None:
        text = hub.text_generation(PROMPT, max_new_tokens=8)
        assert text
        full = hub.text_generation(PROMPT, max_new_tokens=8, return_full_text=True)
        assert full == PROMPT + text

    def test_details(self, hub: huggingface_hub.InferenceClient) -> None:
        answer = hub.text_generation(
            PROMPT, max_new_tokens=8, details=True, decoder_input_details=True, top_n_tokens=2
        )
        details = answer.details
        assert details is not None
        assert details.generated_tokens == len(details.tokens) == 8
        assert details.finish_reason == "length"
        assert details.seed is None
        assert "".join(token.text for token in details.prefill) == PROMPT
        assert details.top_tokens is not None
        assert [len(top) for top in details.top_tokens] == [2] * 8
        for token, top in zip(details.tokens, details.top_tokens, strict=True):
            best: Any = top[0]  # the client leaves these as they are
            assert (best["id"], best["logprob"]) == (token.id, pytest.approx(token.logprob))

    def test_stream(self, hub: huggingface_hub.InferenceClient) -> None:
        text = hub.text_generation(PROMPT, max_new_tokens=8)
        assert "".join(hub.text_generation(PROMPT, max_new_tokens=8, stream=True)) == text

    def test_stream_with_details(self, hub: huggingface_hub.InferenceClient) -> None:
        *events, last = hub.text_generation(PROMPT, max_new_tokens=8, stream=True, details=True)
        assert all(event.details is None for event in events)
        assert [event.index for event in events] == list(range(1, 8))
        assert last.details is not None
        assert (last.details.generated_tokens, last.details.finish_reason) == (8, "length")
        assert last.details.input_length > 0
        assert last.generated_text == hub.text_generation(PROMPT, max_new_tokens=8)

    def test_a_seed_gives_the_same_again(self, hub: huggingface_hub.InferenceClient) -> None:
        sample = {"max_new_tokens": 12, "do_sample": True, "temperature": 1.5, "seed": 7}
        assert hub.text_generation(PROMPT, **sample) == hub.text_generation(PROMPT, **sample)

    def test_stop_is_kept(self, hub: huggingface_hub.InferenceClient) -> None:
        text = hub.text_generation(PROMPT, max_new_tokens=8)
        stopped = hub.text_generation(PROMPT, max_new_tokens=8, stop=[text[3:5]])
        assert text[3:5] in stopped
        assert text.startswith(stopped)
        assert len(stopped) < len(text)

    def test_a_refusal_is_its_validation_error(self, hub: huggingface_hub.InferenceClient) -> None:
        with pytest.raises(ValidationError, match=r"`max_new_tokens` must be <= \d+"):
            hub.text_generation(PROMPT, max_new_tokens=10**9)

    def test_chat(self, hub: huggingface_hub.InferenceClient) -> None:
        answer = hub.chat_completion(MESSAGES, max_tokens=8, temperature=0)
        assert answer.choices[0].message.content
        assert answer.choices[0].finish_reason == "length"
        assert answer.system_fingerprint
        assert answer.usage.completion_tokens == 8

    def test_chat_stream(self, hub: huggingface_hub.InferenceClient) -> None:
        whole = hub.chat_completion(MESSAGES, max_tokens=8, temperature=0)
        chunks = list(hub.chat_completion(MESSAGES, max_tokens=8, temperature=0, stream=True))
        text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
        assert text == whole.choices[0].message.content
        assert [chunk.choices[0].delta.role for chunk in chunks] == ["assistant"] + [None] * 7
        assert chunks[-1].choices[0].finish_reason == "length"

    def test_chat_logprobs(self, hub: huggingface_hub.InferenceClient) -> None:
        answer = hub.chat_completion(MESSAGES, max_tokens=4, temperature=0, logprobs=True, top_logprobs=3)
        logprobs = answer.choices[0].logprobs
        assert logprobs is not None
        assert [len(entry.top_logprobs) for entry in logprobs.content] == [3] * 4


class TestOpenAI:
    """The `openai` SDK."""

    def test_models(self, sdk: openai.OpenAI) -> None:
        [model] = sdk.models.list().data
        assert model.id == "tiny"
        assert sdk.models.retrieve("tiny") == model

    def test_chat(self, sdk: openai.OpenAI) -> None:
        answer = sdk.chat.completions.create(model="tiny", messages=MESSAGES, max_completion_tokens=8)
        assert answer.choices[0].message.role == "assistant"
        assert answer.choices[0].message.content is not None
        assert answer.usage is not None
        assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens

    def test_chat_stream_with_usage(self, sdk: openai.OpenAI) -> None:
        whole = sdk.chat.completions.create(model="tiny", messages=MESSAGES, max_tokens=8, temperature=0)
        with sdk.chat.completions.create(
            model="tiny",
            messages=MESSAGES,
            max_tokens=8,
            temperature=0,
            stream=True,
            stream_options={"include_usage": True},
        ) as stream:
            *chunks, last = stream
        text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
        assert text == whole.choices[0].message.content
        assert last.choices == []
        assert last.usage == whole.usage

    def test_chat_logprobs(self, sdk: openai.OpenAI) -> None:
        answer = sdk.chat.completions.create(
            model="tiny", messages=MESSAGES, max_tokens=4, logprobs=True, top_logprobs=2, temperature=0
        )
        choice = answer.choices[0]
        assert choice.logprobs is not None
        assert choice.logprobs.content is not None
        for entry in choice.logprobs.content:
            assert len(entry.top_logprobs) == 2
            assert entry.top_logprobs[0].token == entry.token
            assert entry.bytes is not None
        spelled = bytes(byte for entry in choice.logprobs.content for byte in entry.bytes or [])
        assert spelled.decode(errors="replace") == choice.message.content

    def test_completion(self, sdk: openai.OpenAI) -> None:
        answer = sdk.completions.create(model="tiny", prompt=PROMPT, max_tokens=8, temperature=0)
        assert answer.choices[0].finish_reason == "length"
        assert answer.usage is not None
        assert answer.usage.completion_tokens == 8
        with sdk.completions.create(
            model="tiny", prompt=PROMPT, max_tokens=8, temperature=0, stream=True
        ) as stream:
            assert "".join(chunk.choices[0].text for chunk in stream) == answer.choices[0].text

    def test_several_prompts_and_answers(self, sdk: openai.OpenAI) -> None:
        answer = sdk.completions.create(
            model="tiny", prompt=[PROMPT, "The fox"], n=2, max_tokens=12, seed=3, temperature=2
        )
        assert [choice.index for choice in answer.choices] == [0, 1, 2, 3]
        assert answer.choices[0].text != answer.choices[1].text

    def test_stop_is_cut(self, sdk: openai.OpenAI) -> None:
        whole = sdk.completions.create(model="tiny", prompt=PROMPT, max_tokens=8, temperature=0)
        stop = whole.choices[0].text[3:5]
        cut = sdk.completions.create(model="tiny", prompt=PROMPT, max_tokens=8, temperature=0, stop=stop)
        assert cut.choices[0].finish_reason == "stop"
        assert cut.choices[0].text == whole.choices[0].text.partition(stop)[0]

    def test_scoring(self, sdk: openai.OpenAI, hub: huggingface_hub.InferenceClient) -> None:
        generated = hub.text_generation(PROMPT, max_new_tokens=6, details=True, decoder_input_details=True)
        assert generated.details is not None
        prompt, answer = generated.details.prefill, generated.details.tokens
        ids = [token.id for token in prompt] + [token.id for token in answer]
        scored = sdk.completions.create(model="tiny", prompt=ids, max_tokens=0, logprobs=1, echo=True)
        logprobs = scored.choices[0].logprobs
        assert scored.choices[0].text == PROMPT + generated.generated_text
        assert logprobs is not None
        assert logprobs.token_logprobs is not None
        assert logprobs.token_logprobs[0] is None
        wanted = [token.logprob for token in prompt[1:]] + [token.logprob for token in answer]
        assert logprobs.token_logprobs[1:] == pytest.approx(wanted, abs=1e-3)

    def test_our_parameters_go_in_the_extra_body(self, sdk: openai.OpenAI) -> None:
        extra = {"ignore_eos": True, "priority": 2, "exact": True, "top_k": 5}
        answer = sdk.chat.completions.create(model="tiny", messages=MESSAGES, max_tokens=8, extra_body=extra)
        assert answer.usage is not None
        assert answer.usage.completion_tokens == 8

    def test_refusals_are_its_errors(self, sdk: openai.OpenAI) -> None:
        with pytest.raises(openai.NotFoundError, match="gpt-9"):
            sdk.chat.completions.create(model="gpt-9", messages=MESSAGES)
        with pytest.raises(openai.BadRequestError) as refused:
            sdk.chat.completions.create(model="tiny", messages=MESSAGES, temperature=-1)
        assert refused.value.param == "temperature"
        with pytest.raises(openai.BadRequestError) as refused:
            sdk.chat.completions.create(model="tiny", messages=MESSAGES, max_tokens=10**9)
        assert refused.value.code == "context_length_exceeded"
