"""The three dialects for a stream of tokens: a path, a JSON body, and a reader of the answer's events."""

import enum
from typing import Any

import msgspec

from loadgen.client.readers import OpenAIReader, Reader, TgiReader
from loadgen.client.records import Record


class Message(msgspec.Struct, frozen=True):
    role: str
    content: str


class Ask(msgspec.Struct, frozen=True, kw_only=True):
    """One request. `text` is the prompt for routes that take plain text."""

    messages: tuple[Message, ...]
    text: str
    max_tokens: int
    ignore_eos: bool = False
    temperature: float = 0.0
    seed: int | None = None
    exit_threshold: float | None = None
    exact: bool = False
    extra: dict[str, Any] = {}


class Dialect(enum.StrEnum):
    TGI = "tgi"
    COMPLETIONS = "completions"
    CHAT = "chat"

    @property
    def path(self) -> str:
        return _PATHS[self]

    def body(self, ask: Ask, model: str) -> bytes:
        return msgspec.json.encode(_tgi_body(ask) if self is Dialect.TGI else _openai_body(self, ask, model))

    def reader(self, record: Record) -> Reader:
        return TgiReader(record) if self is Dialect.TGI else OpenAIReader(record)


_PATHS = {
    Dialect.TGI: "/generate_stream",
    Dialect.COMPLETIONS: "/v1/completions",
    Dialect.CHAT: "/v1/chat/completions",
}


def _tgi_body(ask: Ask) -> dict[str, Any]:
    parameters: dict[str, Any] = {"max_new_tokens": ask.max_tokens, "details": True, **_extras(ask)}
    if ask.temperature > 0:
        parameters |= {"do_sample": True, "temperature": ask.temperature}
    return {"inputs": ask.text, "parameters": parameters | ask.extra}


def _openai_body(dialect: Dialect, ask: Ask, model: str) -> dict[str, Any]:
    prompt: dict[str, Any] = {"messages": ask.messages} if dialect is Dialect.CHAT else {"prompt": ask.text}
    settings = {
        "model": model,
        "max_tokens": ask.max_tokens,
        "temperature": ask.temperature,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    return prompt | settings | _extras(ask) | ask.extra


def _extras(ask: Ask) -> dict[str, Any]:
    """Optional fields, sent only if set, since not every server knows them."""
    extras: dict[str, Any] = {}
    if ask.ignore_eos:
        extras["ignore_eos"] = True
    if ask.seed is not None:
        extras["seed"] = ask.seed
    if ask.exit_threshold is not None:
        extras["exit_threshold"] = ask.exit_threshold
    if ask.exact:
        extras["exact"] = True
    return extras
