"""The bodies of OpenAI's routes. Requests also take fields of ours (`extra_body` in OpenAI's SDK)."""

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from router.api.constraint_structs import Format, Raw, StructuredOutputs, Unsupported
from router.api.sampling_parameters import NotNegative, Positive, SamplingParameters

MAX_TOOLS = 128
NAME_PATTERN = r"^[a-zA-Z0-9_-]{1,64}$"  # of a function
Temperature = Annotated[float, Meta(ge=0)]


class StreamOptions(msgspec.Struct, frozen=True):
    include_usage: bool | None = None


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
    reasoning_content: Annotated[str | None, Meta(description="For templates that know it.")] = None
    audio: Unsupported = None
    function_call: Unsupported = None
    prefix: Unsupported = None


class FunctionDefinition(msgspec.Struct, frozen=True):
    name: Annotated[str, Meta(pattern=NAME_PATTERN)]
    description: str | None = None
    parameters: Annotated[
        dict[str, Any] | None, Meta(description="A JSON Schema of an object. Default: no parameters.")
    ] = None
    strict: Annotated[bool | None, Meta(description="Arguments fit the schema either way.")] = None


class Tool(msgspec.Struct, frozen=True):
    function: FunctionDefinition
    type: Literal["function"] = "function"


class FunctionName(msgspec.Struct, frozen=True):
    name: str


class NamedTool(msgspec.Struct, frozen=True):
    function: FunctionName
    type: Literal["function"] = "function"


class AllowedTools(msgspec.Struct, frozen=True):
    mode: Literal["auto", "required"]
    tools: list[NamedTool]


class ToolChoice(msgspec.Struct, frozen=True):
    """One function that must be called, or the ones that may be."""

    type: Literal["function", "allowed_tools"] = "function"
    function: FunctionName | None = None
    allowed_tools: AllowedTools | None = None


class CommonFields(SamplingParameters, frozen=True, kw_only=True):
    """What chat and completions have in common. null means the default everywhere."""

    model: Annotated[str | None, Meta(description="The deployment's name; see /v1/models.")] = None
    temperature: Annotated[Temperature | None, Meta(description="Default: 1. 0: greedy.")] = None
    n: Annotated[Annotated[int, Meta(ge=1, le=128)] | None, Meta(description="Answers per prompt.")] = None
    stop: Annotated[str | list[str] | None, Meta(description="Cut from the text.")] = None
    stream: Annotated[bool | None, Meta(description="Events, one per token.")] = None
    stream_options: StreamOptions | None = None
    response_format: Annotated[
        Format | None, Meta(description="What the answer must look like: docs/structured-output.md.")
    ] = None
    structured_outputs: Annotated[StructuredOutputs | None, Meta(description="The same, as in vLLM.")] = None
    guided_json: Raw = msgspec.UNSET
    guided_regex: Annotated[str | None, Meta(description="What the whole answer matches.")] = None
    guided_choice: Annotated[list[str] | None, Meta(description="The answer is one of these.")] = None
    guided_grammar: Annotated[str | None, Meta(description="A grammar, in Lark or GBNF.")] = None


class ChatRequest(CommonFields, frozen=True, kw_only=True):
    messages: Annotated[list[Message], Meta(min_length=1)]
    max_tokens: Annotated[Positive | None, Meta(description="Default: as many as fit.")] = None
    max_completion_tokens: Annotated[Positive | None, Meta(description="The same.")] = None
    logprobs: Annotated[bool | None, Meta(description="How likely each token was.")] = None
    top_logprobs: Annotated[NotNegative | None, Meta(description="Alternatives per token.")] = None
    add_generation_prompt: Annotated[
        bool | None, Meta(description="Default: true, unless the last message is the assistant's.")
    ] = None
    continue_final_message: Annotated[
        bool | None, Meta(description="Default: true, if the last message is the assistant's.")
    ] = None
    chat_template_kwargs: Annotated[
        dict[str, Any] | None, Meta(description="Variables for the model's template.")
    ] = None
    add_special_tokens: Annotated[
        bool | None, Meta(description="Beside those that the template writes. Default: false.")
    ] = None
    tools: Annotated[
        Annotated[list[Tool], Meta(max_length=MAX_TOOLS)] | None,
        Meta(description="Functions that the answer may call."),
    ] = None
    tool_choice: Annotated[
        str | ToolChoice | None,
        Meta(description='"none", "auto" (the default), "required", or a function that must be called.'),
    ] = None
    parallel_tool_calls: Annotated[
        bool | None, Meta(description="Default: true. false: one call at most.")
    ] = None


class CompletionRequest(CommonFields, frozen=True, kw_only=True):
    prompt: Annotated[
        str | list[str | int | list[int]],
        Meta(description="Text, token ids, or a list of either.", examples=["Once upon a time"]),
    ]
    max_tokens: Annotated[
        NotNegative | None, Meta(description="Default: 100. 0 with echo and logprobs: only score.")
    ] = None
    best_of: Annotated[Positive | None, Meta(description="Make so many, return the likeliest `n`.")] = None
    echo: Annotated[bool | None, Meta(description="Put the prompt before the text.")] = None
    logprobs: Annotated[NotNegative | None, Meta(description="Alternatives per token.")] = None
    add_special_tokens: Annotated[bool | None, Meta(description="Default: true.")] = None


# Answers


class PromptTokensDetails(msgspec.Struct, frozen=True):
    cached_tokens: int  # that a shard had computed before


class Usage(msgspec.Struct, frozen=True):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails


class TopLogprob(msgspec.Struct, frozen=True):
    token: str
    logprob: float
    bytes: list[int]


class TokenLogprob(msgspec.Struct, frozen=True):
    token: str
    logprob: float
    bytes: list[int]
    top_logprobs: list[TopLogprob]
    exit_layer: Annotated[int, Meta(description="Ours: the layer at which it left; 0: a grammar forced it.")]
    confidence: Annotated[float | None, Meta(description="Ours: at that exit; null where none was asked.")]


class ChatLogprobs(msgspec.Struct, frozen=True):
    content: list[TokenLogprob]


class FunctionCall(msgspec.Struct, frozen=True):
    name: str
    arguments: Annotated[str, Meta(description="JSON, unless the answer was cut off.")]


class ToolCall(msgspec.Struct, frozen=True):
    id: str
    function: FunctionCall
    type: Literal["function"] = "function"


class ChatMessage(msgspec.Struct, frozen=True):
    """Without content when the answer is calls alone."""

    role: Literal["assistant"]
    content: str | None
    tool_calls: list[ToolCall] | msgspec.UnsetType = msgspec.UNSET


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


class FunctionCallDelta(msgspec.Struct, frozen=True):
    arguments: str
    name: str | msgspec.UnsetType = msgspec.UNSET


class ToolCallDelta(msgspec.Struct, frozen=True):
    """The next piece of a call. The first one has its id, type and name."""

    index: int
    function: FunctionCallDelta
    id: str | msgspec.UnsetType = msgspec.UNSET
    type: Literal["function"] | msgspec.UnsetType = msgspec.UNSET


class ChatDelta(msgspec.Struct, frozen=True):
    """A piece of a message. Client libraries concatenate deltas, so only the first one has the role."""

    content: str | msgspec.UnsetType | None
    role: Literal["assistant"] | msgspec.UnsetType = msgspec.UNSET
    tool_calls: list[ToolCallDelta] | msgspec.UnsetType = msgspec.UNSET


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
    """Parallel lists, one entry per token; null for a prompt's first token, which nothing predicts.

    The last two are ours: prompts leave at no layer, so that their tokens have null there.
    """

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]
    exit_layers: list[int | None]
    confidences: list[float | None]


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
