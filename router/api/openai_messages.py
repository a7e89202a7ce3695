"""Converts a client's conversation to what chat templates expect: content as text."""

from typing import Any

import msgspec

from router.api.errors import Invalid
from router.api.openai_structs import ChatRequest, ContentPart, Message
from router.api.openai_tools import tools_of
from router.text.chat_template import RESERVED
from router.text.prompt import Prompt

_ROLES = {"developer": "system"}  # OpenAI's newer role, unknown to templates
_REFUSED = {
    "audio": "messages are text",
    "function_call": "calls are `tool_calls`",
    "prefix": "the last message of the assistant is gone on with; see `continue_final_message`",
}
_TEXTS = ("text", "refusal")  # parts; each has its text under its own name


def chat_prompt(asked: ChatRequest) -> Prompt:
    """The conversation as a `Prompt` for the model's template. Raises `Invalid`.

    As in TGI, a last message of the assistant's is continued, unless the client says otherwise.
    """
    messages = messages_of(asked)
    continues = asked.continue_final_message
    if continues is None:
        continues = asked.add_generation_prompt is None and _is_begun(messages[-1])
    elif continues and asked.add_generation_prompt:
        raise Invalid("continue_final_message", "and `add_generation_prompt` exclude each other")
    adds_prompt = asked.add_generation_prompt
    return Prompt(
        messages=messages,
        add_generation_prompt=not continues if adds_prompt is None else adds_prompt,
        continue_final_message=continues,
        template_arguments=_template_arguments(asked),
        add_special_tokens=asked.add_special_tokens,
        tools=tools_of(asked),
    )


def _is_begun(message: dict[str, Any]) -> bool:
    return message["role"] == "assistant" and not message.get("tool_calls")


def _template_arguments(asked: ChatRequest) -> dict[str, Any]:
    arguments = asked.chat_template_kwargs or {}
    for name in RESERVED:
        if name in arguments:
            raise Invalid(f"chat_template_kwargs.{name}", "is not for the client to set there")
    return arguments


def messages_of(asked: ChatRequest) -> list[dict[str, Any]]:
    """The messages with their content as text. Raises `Invalid` for other content."""
    return [_message(message, f"messages[{index}]") for index, message in enumerate(asked.messages)]


def _message(message: Message, at: str) -> dict[str, Any]:
    for name in _REFUSED:
        if getattr(message, name):
            raise Invalid(f"{at}.{name}", f"is not supported: {_REFUSED[name]}")
    fields: dict[str, Any] = msgspec.to_builtins(message)
    fields |= {"role": _ROLES.get(message.role, message.role), "content": _text(message, at)}
    if message.tool_calls:
        fields["tool_calls"] = [_tool_call(call, f"{at}.tool_calls") for call in message.tool_calls]
    return fields


def _text(message: Message, at: str) -> str:
    """A message's content as text; "" for missing content, which templates would write as None."""
    if message.content is None and message.role != "assistant":
        raise Invalid(f"{at}.content", "is missing: only a message of the assistant may have none")
    if message.content is None or isinstance(message.content, str):
        return message.content or ""
    return "".join(_text_of_part(part, f"{at}.content") for part in message.content)


def _text_of_part(part: ContentPart, at: str) -> str:
    text = part.refusal if part.type == "refusal" else part.text
    if part.type not in _TEXTS or text is None:
        raise Invalid(at, f"takes parts of type text only, not {part.type}")
    return text


def _tool_call(call: dict[str, Any], at: str) -> dict[str, Any]:
    """A tool call with its arguments parsed from OpenAI's JSON string, since templates write them out."""
    function = call.get("function")
    if not isinstance(function, dict) or not isinstance(arguments := function.get("arguments"), str):
        return call
    try:
        return call | {"function": function | {"arguments": msgspec.json.decode(arguments or "{}")}}
    except msgspec.DecodeError as error:
        raise Invalid(f"{at}.function.arguments", f"is not JSON: {error}") from None
