"""Translates OpenAI's requests into TGI's parameters."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import msgspec

from router.api.constraints import Wanted, of_fields
from router.api.errors import Invalid
from router.api.openai_structs import ChatRequest, CommonFields, CompletionRequest
from router.api.sampling_parameters import shared
from router.api.tgi_structs import Parameters

CHAT_NAMES = {"inputs": "messages", "max_new_tokens": "max_tokens", "top_n_tokens": "top_logprobs"}
COMPLETION_NAMES = {"inputs": "prompt", "max_new_tokens": "max_tokens", "top_n_tokens": "logprobs"}


@contextmanager
def naming(names: dict[str, str]) -> Iterator[None]:
    """Errors about TGI's parameters name the client's."""
    try:
        yield
    except Invalid as error:
        raise error.called(names) from None


class Call(msgspec.Struct, frozen=True, kw_only=True):
    """One HTTP call: `per_prompt` generations for each prompt, of which the best `n` are returned."""

    parameters: Parameters
    wanted: Wanted | None  # what the answer must look like
    n: int
    per_prompt: int
    wants_stream: bool
    wants_usage: bool  # at the end of the stream


def chat_call(asked: ChatRequest) -> Call:
    """Raises `Invalid`."""
    if asked.top_logprobs and not asked.logprobs:
        raise Invalid("top_logprobs", "needs `logprobs` to be true")
    max_tokens = asked.max_completion_tokens or asked.max_tokens
    return _call(asked, _parameters(asked, max_tokens, asked.top_logprobs or 0), asked.n or 1)


def completion_call(asked: CompletionRequest) -> Call:
    """Raises `Invalid`."""
    _check_best_of(asked)
    max_tokens = msgspec.UNSET if asked.max_tokens is None else asked.max_tokens
    scores_prompt = bool(asked.echo) and asked.logprobs is not None
    parameters = _parameters(asked, max_tokens, asked.logprobs or 0)
    scored = msgspec.structs.replace(parameters, decoder_input_details=scores_prompt)
    return _call(asked, scored, asked.best_of or asked.n or 1)


def _call(asked: CommonFields, parameters: Parameters, per_prompt: int) -> Call:
    options = asked.stream_options
    return Call(
        parameters=parameters,
        wanted=of_fields(asked),
        n=asked.n or 1,
        per_prompt=per_prompt,
        wants_stream=bool(asked.stream),
        wants_usage=options is not None and bool(options.include_usage),
    )


def _check_best_of(asked: CompletionRequest) -> None:
    best_of, n = asked.best_of or asked.n or 1, asked.n or 1
    if best_of < n:
        raise Invalid("best_of", f"must be >= `n`, which is {n}. Given: {best_of}")
    if best_of > n and asked.stream:
        raise Invalid("best_of", "> `n` is not supported when streaming")


def _parameters(
    asked: CommonFields, max_tokens: int | msgspec.UnsetType | None, num_top_tokens: int
) -> Parameters:
    wanted: dict[str, Any] = shared(asked) | {
        "temperature": 1.0 if asked.temperature is None else asked.temperature,
        "top_k": asked.top_k if (asked.top_k or 0) > 0 else None,
        "max_new_tokens": max_tokens,
        "stop": ([asked.stop] if asked.stop else []) if isinstance(asked.stop, str) else asked.stop,
        "top_n_tokens": num_top_tokens,
    }
    return Parameters(**wanted)


def prompts_of(asked: CompletionRequest, max_prompts: int | None) -> list[str] | list[list[int]]:
    """The prompts, all text or all token ids. Raises `Invalid`."""
    prompt: Any = asked.prompt
    prompts = [prompt] if isinstance(prompt, str) else prompt
    if prompts and all(isinstance(part, int) for part in prompts):
        prompts = [prompts]
    if not prompts or len({type(part) for part in prompts}) > 1:
        raise Invalid("prompt", "must be text, token ids, or a list of one of these")
    if max_prompts is not None and len(prompts) > max_prompts:
        raise Invalid("prompt", f"takes at most {max_prompts} prompts in one call. Given: {len(prompts)}")
    return cast(list[str] | list[list[int]], prompts)
