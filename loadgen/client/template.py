"""Turns conversations into plain text, for routes that take no messages.

A server's chat template is learned once, by rendering markers and reading the text between them, so that no
request needs a rendering by the server.
"""

import msgspec

from loadgen.client.client import Client
from loadgen.client.dialects import Message

_MARKS = ("marker-one", "marker-two", "marker-three")


class ChatTemplate(msgspec.Struct, frozen=True):
    """The texts that a template puts around messages. `system` is for conversations with a system message."""

    opening: str  # before the first user message
    to_assistant: str  # between a user message and the answer
    to_user: str  # between an answer and the next user message
    closing: str  # after the last user message
    system: tuple[str, str] | None = None  # before and after a system message, up to the user message

    def render(self, messages: tuple[Message, ...]) -> str:
        opening, said = self.opening, list(messages)
        if said[0].role == "system":
            before, after = self.system or (self.opening, "\n\n")
            opening = before + said.pop(0).content + after
        parts = [opening]
        for message in said[:-1]:
            parts += [message.content, self.to_assistant if message.role == "user" else self.to_user]
        return "".join([*parts, said[-1].content, self.closing])


def plain_text(messages: tuple[Message, ...]) -> str:
    """A single message unchanged; a dialogue with speakers' names."""
    if len(messages) == 1:
        return messages[0].content
    lines = (f"{message.role.capitalize()}: {message.content}" for message in messages)
    return "\n".join([*lines, "Assistant:"])


async def learn_template(client: Client) -> ChatTemplate | None:
    """The chat template of a server with `/chat_tokenize`; None if rendering drops markers."""
    first, second, third = _MARKS
    single = await _rendered(client, Message("user", first))
    dialogue = await _rendered(
        client, Message("user", first), Message("assistant", second), Message("user", third)
    )
    if (
        single is None
        or dialogue is None
        or first not in single
        or any(mark not in dialogue for mark in _MARKS)
    ):
        return None
    opening, closing = single.split(first)
    _, rest = dialogue.split(first)
    to_assistant, rest = rest.split(second)
    to_user, _ = rest.split(third)
    return ChatTemplate(opening, to_assistant, to_user, closing, await _around_system(client))


async def _around_system(client: Client) -> tuple[str, str] | None:
    first, second, _ = _MARKS
    text = await _rendered(client, Message("system", first), Message("user", second))
    if text is None or first not in text or second not in text:
        return None
    before, rest = text.split(first)
    return before, rest.split(second)[0]


async def _rendered(client: Client, *messages: Message) -> str | None:
    value = (await client.fetch("POST", "/chat_tokenize", {"model": "", "messages": messages})).json()
    text = value.get("templated_text") if isinstance(value, dict) else None
    return text if isinstance(text, str) else None
