"""Translates requests to `/v1/responses` into chat requests."""

from collections.abc import Iterator
from contextlib import contextmanager

from router.api.constraint_structs import Format, JsonObject, JsonSchema, NamedSchema
from router.api.errors import Invalid
from router.api.openai_structs import (
    AllowedTools,
    ChatRequest,
    ContentPart,
    FunctionDefinition,
    FunctionName,
    Message,
    NamedTool,
    Tool,
    ToolChoice,
)
from router.api.responses_structs import (
    AnyObject,
    FlatSchema,
    InputItem,
    InputPart,
    ResponsesRequest,
    ResponseTool,
    ResponseToolChoice,
    TextOptions,
)
from router.api.sampling_parameters import SamplingParameters

_NAMES = {
    "inputs": "input",
    "messages": "input",
    "max_new_tokens": "max_output_tokens",
    "max_tokens": "max_output_tokens",
}
_TEXTS = ("input_text", "output_text", "text")


@contextmanager
def naming() -> Iterator[None]:
    """Renames the fields of a chat in errors to those of a response."""
    try:
        yield
    except Invalid as error:
        name = _NAMES.get(error.parameter, error.parameter)
        name = name.replace("].function.", "].").replace("tool_choice.function", "tool_choice")
        name = name.replace(".allowed_tools", "").replace("response_format.json_schema", "text.format")
        name = name.replace("response_format", "text.format")
        raise error.called({error.parameter: name}) from None


def chat_of(asked: ResponsesRequest) -> ChatRequest:
    """The chat request. Raises `Invalid`. A last message of the assistant is answered, not continued."""
    shared = {name: getattr(asked, name) for name in SamplingParameters.__struct_fields__}
    return ChatRequest(
        **shared,
        model=asked.model,
        messages=_messages(asked),
        max_tokens=asked.max_output_tokens,
        stream=asked.stream,
        response_format=None if asked.text is None else _format(asked.text),
        add_generation_prompt=True,
        tools=None if asked.tools is None else [_tool(tool) for tool in asked.tools],
        tool_choice=_choice(asked.tool_choice),
        parallel_tool_calls=asked.parallel_tool_calls,
    )


def _format(text: TextOptions) -> Format | None:
    match text.format:
        case AnyObject():
            return JsonObject()
        case FlatSchema(schema=schema):
            return JsonSchema(NamedSchema(schema))
    return None


def _messages(asked: ResponsesRequest) -> list[Message]:
    """The messages of a chat, in which calls belong to the assistant's message before them."""
    messages = [] if asked.instructions is None else [Message("system", asked.instructions)]
    if isinstance(asked.input, str):
        return [*messages, Message("user", asked.input)]
    for index, item in enumerate(asked.input):
        message = _message(item, f"input[{index}]")
        last = messages[-1] if messages else None
        if item.type == "function_call" and last is not None and last.role == "assistant":
            calls = [*(last.tool_calls or []), *(message.tool_calls or [])]
            messages[-1] = Message("assistant", last.content, tool_calls=calls)
        else:
            messages.append(message)
    return messages


def _message(item: InputItem, at: str) -> Message:
    if item.type == "function_call":
        function = {
            "name": _given(item.name, f"{at}.name"),
            "arguments": _given(item.arguments, f"{at}.arguments"),
        }
        id = _given(item.call_id, f"{at}.call_id")
        return Message("assistant", None, tool_calls=[{"id": id, "type": "function", "function": function}])
    if item.type == "function_call_output":
        id = _given(item.call_id, f"{at}.call_id")
        return Message("tool", _content(item.output, f"{at}.output"), tool_call_id=id)
    return Message(_given(item.role, f"{at}.role"), _content(item.content, f"{at}.content"))


def _given(value: str | None, at: str) -> str:
    if value is None:
        raise Invalid(at, "is missing")
    return value


def _content(content: str | list[InputPart] | None, at: str) -> str | list[ContentPart]:
    if content is None:
        raise Invalid(at, "is missing")
    return content if isinstance(content, str) else [_part(part, at) for part in content]


def _part(part: InputPart, at: str) -> ContentPart:
    if part.type == "refusal" and part.refusal is not None:
        return ContentPart("refusal", refusal=part.refusal)
    if part.type in _TEXTS and part.text is not None:
        return ContentPart("text", part.text)
    raise Invalid(at, f"takes parts of text only, not {part.type}")


def _tool(tool: ResponseTool) -> Tool:
    return Tool(FunctionDefinition(tool.name, tool.description, tool.parameters, tool.strict))


def _choice(choice: str | ResponseToolChoice | None) -> str | ToolChoice | None:
    if not isinstance(choice, ResponseToolChoice):
        return choice
    if choice.type == "allowed_tools":
        names = [NamedTool(FunctionName(tool.name)) for tool in choice.tools]
        return ToolChoice("allowed_tools", allowed_tools=AllowedTools(choice.mode or "auto", names))
    return ToolChoice("function", FunctionName(_given(choice.name, "tool_choice.name")))
