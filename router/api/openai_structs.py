"""The bodies of OpenAI's routes, with ours beside theirs in requests (`extra_body` in their SDK)."""

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from router.api.sampling_parameters import NotNegative, Positive, SamplingParameters

Temperature = Annotated[float, Meta(ge=0)]


class StreamOptions(msgspec.Struct, frozen=True):
    include_usage: bool | None = None


class ResponseFormat(msgspec.Struct, frozen=True):
    type: str


class ContentPart(msgspec.Struct, frozen=True):
    type: str
    text: str | None = None
    refusal: str | None = None


class Message(msgspec.Struct, frozen=True, omit_defaults=True):
    role: Annotated[str, Meta(min_length=1)]
    content: str | list[ContentPart] | None = None
    name: str | None = None
    tool_calls: list[dict[str, Any]] | None = None
    tool_call_id: str | None = None


class CommonFields(SamplingParameters, frozen=True, kw_only=True):
    """What chat and completions have in common. null means the default everywhere."""

    model: Annotated[str | None, Meta(description="The deployment's name; see /v1/models.")] = None
    temperature: Annotated[Temperature | None, Meta(description="Default: 1. 0: greedy.")] = None
    n: Annotated[Annotated[int, Meta(ge=1, le=128)] | None, Meta(description="Answers per prompt.")] = None
    stop: Annotated[str | list[str] | None, Meta(description="Cut from the text.")] = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    min_tokens: Annotated[
        NotNegative | None, Meta(description="0, or as many as max_tokens (then like ignore_eos).")
    ] = None
    user: str | None = None
    logit_bias: Annotated[Any, Meta(description="Not supported.")] = None
    response_format: Annotated[ResponseFormat | None, Meta(description="Only `text`.")] = None


class ChatRequest(CommonFields, frozen=True, kw_only=True):
    messages: Annotated[list[Message], Meta(min_length=1)]
    max_tokens: Annotated[Positive | None, Meta(description="Default: as many as fit.")] = None
    max_completion_tokens: Positive | None = None
    logprobs: bool | None = None
    top_logprobs: NotNegative | None = None
    tools: Annotated[list[Any] | None, Meta(description="Not supported.")] = None
    tool_choice: Annotated[Any, Meta(description="Not supported.")] = None
    tool_prompt: str | None = None
    add_generation_prompt: bool | None = None


class CompletionRequest(CommonFields, frozen=True, kw_only=True):
    prompt: Annotated[
        str | list[str | int | list[int]],
        Meta(description="Text, token ids, or a list of either.", examples=["Once upon a time"]),
    ]
    max_tokens: Annotated[
        NotNegative | None, Meta(description="Default: 100. 0 with echo and logprobs: only score.")
    ] = None
    best_of: Positive | None = None
    echo: Annotated[bool | None, Meta(description="Put the prompt before the text.")] = None
    logprobs: Annotated[NotNegative | None, Meta(description="Alternatives per token.")] = None
    suffix: Annotated[str | None, Meta(description="Not supported.")] = None
    add_special_tokens: bool | None = None


# Answers


class Usage(msgspec.Struct, frozen=True):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class TopLogprob(msgspec.Struct, frozen=True):
    token: str
    logprob: float
    bytes: list[int]


class TokenLogprob(msgspec.Struct, frozen=True):
    token: str
    logprob: float
    bytes: list[int]
    top_logprobs: list[TopLogprob]


class ChatLogprobs(msgspec.Struct, frozen=True):
    content: list[TokenLogprob]


class ChatMessage(msgspec.Struct, frozen=True):
    role: Literal["assistant"]
    content: str


class ChatChoice(msgspec.Struct, frozen=True):
    index: int
    message: ChatMessage
    finish_reason: str
    logprobs: ChatLogprobs | None


class ChatCompletion(msgspec.Struct, frozen=True, kw_only=True):
    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    system_fingerprint: str
    choices: list[ChatChoice]
    usage: Usage


class ChatDelta(msgspec.Struct, frozen=True):
    """What follows of a message. Helpers join what deltas say, so the role is said once, by the first."""

    content: str
    role: Literal["assistant"] | msgspec.UnsetType = msgspec.UNSET


class ChatChunkChoice(msgspec.Struct, frozen=True):
    index: int
    delta: ChatDelta
    finish_reason: str | None
    logprobs: ChatLogprobs | None


class ChatChunk(msgspec.Struct, frozen=True):
    """One token, or with `stream_options.include_usage` at the end the usage and no choice."""

    id: str
    created: int
    model: str
    system_fingerprint: str
    choices: list[ChatChunkChoice]
    usage: Usage | None = None
    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"


class CompletionLogprobs(msgspec.Struct, frozen=True):
    """Parallel lists, one entry per token; null for a prompt's first token, which nothing predicts."""

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]


class CompletionChoice(msgspec.Struct, frozen=True):
    index: int
    text: str
    finish_reason: str | None
    logprobs: CompletionLogprobs | None


class Completion(msgspec.Struct, frozen=True):
    """A whole answer, or one event of a stream."""

    id: str
    created: int
    model: str
    system_fingerprint: str
    choices: list[CompletionChoice]
    usage: Usage | None = None
    object: Literal["text_completion"] = "text_completion"


class Model(msgspec.Struct, frozen=True, kw_only=True):
    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "helios"
    root: str
    max_model_len: int | None


class Models(msgspec.Struct, frozen=True, kw_only=True):
    object: Literal["list"] = "list"
    data: list[Model]
