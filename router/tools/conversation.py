"""Rewrites conversations for templates without support of tools: tools, calls and results become text."""

import hashlib
import json
import re
from collections.abc import Iterable, Sequence
from typing import Any

from router.tools.call_format import CallFormat

Message = dict[str, Any]

_MISTRAL_ID = re.compile(r"[a-zA-Z0-9]{9}")


def description_of(tools: Sequence[dict[str, Any]], calls: CallFormat) -> str:
    """The text that describes tools to a model, and how to call them."""
    example = calls.written([("<function-name>", "<arguments as a JSON object>")])
    return "\n".join(
        [
            "# Tools",
            "",
            "You may call functions to help with the user's request. Their signatures are:",
            "<tools>",
            *map(json.dumps, tools),
            "</tools>",
            "",
            "To call a function, answer with its name and its arguments in exactly this form:",
            example,
        ]
    )


def with_description(messages: Iterable[Message], description: str) -> list[Message]:
    """The messages, with the description after the system message's text. Without one it is added."""
    listed = list(messages)
    if listed and listed[0]["role"] == "system":
        first = listed[0]
        return [first | {"content": f"{first['content']}\n\n{description}"}, *listed[1:]]
    return [{"role": "system", "content": description}, *listed]


def with_description_in_user_message(messages: Iterable[Message], description: str) -> list[Message]:
    """The messages, with the description before the first user text, for templates without a system role."""
    listed = list(messages)
    at = next((at for at, message in enumerate(listed) if message["role"] == "user"), None)
    if at is None:
        return listed
    described = listed[at] | {"content": f"{description}\n\n{listed[at]['content']}"}
    return [*listed[:at], described, *listed[at + 1 :]]


def with_calls_as_text(messages: Iterable[Message], calls: CallFormat) -> list[Message]:
    """The messages, with calls as the assistant's text and results as messages of the user."""
    written: list[Message] = []
    follows_result = False
    for message in messages:
        if message["role"] != "tool":
            written.append(_with_calls(message, calls))
        elif follows_result:
            written[-1]["content"] += "\n" + _result(message)
        else:
            written.append({"role": "user", "content": _result(message)})
        follows_result = message["role"] == "tool"
    return written


def _with_calls(message: Message, calls: CallFormat) -> Message:
    made = [call for call in message.get("tool_calls") or () if isinstance(call.get("function"), dict)]
    if not made:
        return message
    text = calls.written([(call["function"].get("name", ""), _arguments(call)) for call in made])
    content = f"{message['content']}\n{text}" if message["content"] else text
    return {"role": message["role"], "content": content}


def _arguments(call: Message) -> str:
    return json.dumps(call["function"].get("arguments") or {}, ensure_ascii=False)


def _result(message: Message) -> str:
    return f"<tool_response>\n{message['content']}\n</tool_response>"


def with_names(messages: Iterable[Message]) -> list[Message]:
    """The messages, each result with its function's name, which clients may omit and some templates write."""
    names: dict[str, Any] = {}
    named: list[Message] = []
    for message in messages:
        for call in message.get("tool_calls") or ():
            if isinstance(call.get("function"), dict) and isinstance(call.get("id"), str):
                names[call["id"]] = call["function"].get("name")
        name = names.get(message.get("tool_call_id") or "") if message["role"] == "tool" else None
        named.append({"name": name} | message if name else message)
    return named


def with_short_ids(messages: Iterable[Message]) -> list[Message]:
    """The messages, with ids of nine letters and digits, as Mistral's templates require."""
    return [_with_short_ids(message) for message in messages]


def _with_short_ids(message: Message) -> Message:
    changed = dict(message)
    if isinstance(message.get("tool_call_id"), str):
        changed["tool_call_id"] = _short(message["tool_call_id"])
    if message.get("tool_calls"):
        changed["tool_calls"] = [
            call | {"id": _short(call["id"])} if isinstance(call.get("id"), str) else call
            for call in message["tool_calls"]
        ]
    return changed


def _short(id: str) -> str:
    return id if _MISTRAL_ID.fullmatch(id) else hashlib.sha256(id.encode()).hexdigest()[:9]
