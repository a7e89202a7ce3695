"""The bodies and events of OpenAI's `/v1/responses`, which keeps nothing: a conversation is sent whole."""

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from router.api.constraint_structs import Schema, Text
from router.api.openai_structs import MAX_TOOLS, NAME_PATTERN, Temperature
from router.api.sampling_parameters import Positive, SamplingParameters


class InputPart(msgspec.Struct, frozen=True):
    type: str
    text: str | None = None
    refusal: str | None = None


class InputItem(msgspec.Struct, frozen=True):
    """A message, a call of a function, or the output of one."""

    type: Literal["message", "function_call", "function_call_output"] = "message"
    role: Annotated[str, Meta(min_length=1)] | None = None
    content: str | list[InputPart] | None = None
    call_id: str | None = None
    name: str | None = None
    arguments: str | None = None
    output: str | list[InputPart] | None = None


class ResponseTool(msgspec.Struct, frozen=True):
    type: Literal["function"]
    name: Annotated[str, Meta(pattern=NAME_PATTERN)]
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class AllowedTool(msgspec.Struct, frozen=True):
    type: Literal["function"]
    name: str


class ResponseToolChoice(msgspec.Struct, frozen=True, omit_defaults=True):
    """One function that must be called, or the ones that may be."""

    type: Literal["function", "allowed_tools"]
    name: str | None = None
    mode: Literal["auto", "required"] | None = None
    tools: list[AllowedTool] = []


class AnyObject(msgspec.Struct, frozen=True, tag="json_object", tag_field="type"):
    """A JSON object."""


class FlatSchema(msgspec.Struct, frozen=True, tag="json_schema", tag_field="type"):
    """JSON of a schema. `strict` or not, answers follow it; `name` and `description` are for the client."""

    schema: Schema
    name: str | None = None
    description: str | None = None
    strict: bool | None = None


class TextOptions(msgspec.Struct, frozen=True):
    format: Text | AnyObject | FlatSchema | None = None


class ResponsesRequest(SamplingParameters, frozen=True, kw_only=True):
    """null means the default everywhere."""

    input: Annotated[
        str | Annotated[list[InputItem], Meta(min_length=1)],
        Meta(description="Text, or the conversation so far.", examples=["Once upon a time"]),
    ]
    model: Annotated[str | None, Meta(description="The deployment's name; see /v1/models.")] = None
    instructions: Annotated[str | None, Meta(description="A system message before the input.")] = None
    temperature: Annotated[Temperature | None, Meta(description="Default: 1. 0: greedy.")] = None
    stream: Annotated[bool | None, Meta(description="Events, one per piece of the answer.")] = None
    max_output_tokens: Annotated[Positive | None, Meta(description="Default: as many as fit.")] = None
    text: Annotated[TextOptions | None, Meta(description="How the answer's text is made up.")] = None
    tools: Annotated[
        Annotated[list[ResponseTool], Meta(max_length=MAX_TOOLS)] | None,
        Meta(description="Functions that the answer may call."),
    ] = None
    tool_choice: Annotated[
        str | ResponseToolChoice | None,
        Meta(description='"none", "auto" (the default), "required", or a function that must be called.'),
    ] = None
    parallel_tool_calls: Annotated[
        bool | None, Meta(description="Default: true. false: one call at most.")
    ] = None


# Answers

Progress = Literal["in_progress", "completed", "incomplete"]


class OutputText(msgspec.Struct, frozen=True):
    text: str
    type: Literal["output_text"] = "output_text"
    annotations: list[Any] = []
    logprobs: list[Any] = []


class OutputMessage(msgspec.Struct, frozen=True, tag_field="type", tag="message"):
    id: str
    status: Progress
    content: list[OutputText]
    role: Literal["assistant"] = "assistant"


class OutputCall(msgspec.Struct, frozen=True, tag_field="type", tag="function_call"):
    id: str
    status: Progress
    call_id: str
    name: str
    arguments: Annotated[str, Meta(description="JSON, unless the answer was cut off.")]


OutputItem = OutputMessage | OutputCall


class InputTokensDetails(msgspec.Struct, frozen=True):
    cached_tokens: int = 0


class OutputTokensDetails(msgspec.Struct, frozen=True):
    reasoning_tokens: int = 0


class ResponseUsage(msgspec.Struct, frozen=True):
    input_tokens: int
    output_tokens: int
    total_tokens: int
    input_tokens_details: InputTokensDetails = InputTokensDetails()
    output_tokens_details: OutputTokensDetails = OutputTokensDetails()


class IncompleteDetails(msgspec.Struct, frozen=True):
    reason: Literal["max_output_tokens"] = "max_output_tokens"


class ResponseFailure(msgspec.Struct, frozen=True):
    code: str
    message: str


class Response(msgspec.Struct, frozen=True, kw_only=True):
    id: str
    object: Literal["response"] = "response"
    created_at: int
    status: Literal["in_progress", "completed", "incomplete", "failed"]
    model: str
    output: list[OutputItem] = []
    usage: ResponseUsage | None = None
    error: ResponseFailure | None = None
    incomplete_details: IncompleteDetails | None = None
    instructions: str | None
    max_output_tokens: int | None
    temperature: float
    top_p: float
    text: TextOptions
    tools: list[ResponseTool]
    tool_choice: str | ResponseToolChoice
    parallel_tool_calls: bool
    previous_response_id: str | None = None
    store: bool = False
    truncation: Literal["disabled"] = "disabled"
    metadata: dict[str, str] = {}


class Event(msgspec.Struct, frozen=True, kw_only=True, tag_field="type"):
    """What every event has."""

    sequence_number: int


class Created(Event, frozen=True, tag="response.created"):
    response: Response


class InProgress(Event, frozen=True, tag="response.in_progress"):
    response: Response


class ItemAdded(Event, frozen=True, kw_only=True, tag="response.output_item.added"):
    output_index: int
    item: OutputItem


class ItemDone(Event, frozen=True, kw_only=True, tag="response.output_item.done"):
    output_index: int
    item: OutputItem


class PartAdded(Event, frozen=True, kw_only=True, tag="response.content_part.added"):
    item_id: str
    output_index: int
    content_index: int = 0
    part: OutputText


class PartDone(Event, frozen=True, kw_only=True, tag="response.content_part.done"):
    item_id: str
    output_index: int
    content_index: int = 0
    part: OutputText


class TextDelta(Event, frozen=True, kw_only=True, tag="response.output_text.delta"):
    item_id: str
    output_index: int
    content_index: int = 0
    delta: str
    logprobs: list[Any] = []


class TextDone(Event, frozen=True, kw_only=True, tag="response.output_text.done"):
    item_id: str
    output_index: int
    content_index: int = 0
    text: str
    logprobs: list[Any] = []


class ArgumentsDelta(Event, frozen=True, kw_only=True, tag="response.function_call_arguments.delta"):
    item_id: str
    output_index: int
    delta: str


class ArgumentsDone(Event, frozen=True, kw_only=True, tag="response.function_call_arguments.done"):
    item_id: str
    output_index: int
    name: str
    arguments: str


class Completed(Event, frozen=True, tag="response.completed"):
    response: Response


class Incomplete(Event, frozen=True, tag="response.incomplete"):
    response: Response


class Failed(Event, frozen=True, tag="response.failed"):
    response: Response


ResponseEvent = (
    Created
    | InProgress
    | ItemAdded
    | ItemDone
    | PartAdded
    | PartDone
    | TextDelta
    | TextDone
    | ArgumentsDelta
    | ArgumentsDone
    | Completed
    | Incomplete
    | Failed
)
