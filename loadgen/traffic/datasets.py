"""Prompts from files in common formats, and from the shipped sets.

Everything becomes conversations: the user's messages by turn. Of an assistant's messages only the lengths are
kept, since the history gets the server's own answers.
"""

from collections.abc import Iterable
from importlib.resources import files
from pathlib import Path
from typing import Any

import msgspec

from loadgen.cli.units import BadQuantity

SHIPPED = ("chat", "story", "code", "extract")
CHARS_PER_TOKEN = 4  # English; accurate enough to estimate an answer's length


class Conversation(msgspec.Struct, frozen=True):
    """A user's messages. `answer_tokens` are estimates per turn, from the file's answers if it has any."""

    group: str
    turns: tuple[str, ...]
    system: str = ""
    answer_tokens: tuple[int, ...] = ()


def shipped(group: str) -> list[Conversation]:
    """A shipped set. Raises `BadQuantity` for an unknown one."""
    if group not in SHIPPED:
        raise BadQuantity(f"there is no shipped prompt set {group!r}; there are {', '.join(SHIPPED)}")
    text = (files("loadgen.traffic") / "prompts" / f"{group}.jsonl").read_bytes()
    return [_conversation(msgspec.json.decode(line), group) for line in text.splitlines() if line.strip()]


def read_dataset(path: Path) -> list[Conversation]:
    """ShareGPT JSON, or JSONL with `prompt`, `text`, `question`, `turns`, `messages` or `conversations`.

    The class is the line's `class`, `category` or `group`, else the file's name.
    Raises `BadQuantity`, OSError.
    """
    default = path.stem
    found = [_conversation_at(path, number, item, default) for number, item in _items(path)]
    conversations = [conversation for conversation in found if conversation.turns]
    if not conversations:
        raise BadQuantity(f"{path} holds no prompt")
    return conversations


def _items(path: Path) -> list[tuple[int, Any]]:
    """The objects of a JSON list or of JSON lines, numbered from 1."""
    raw = path.read_bytes()
    if raw.lstrip()[:1] == b"[":
        return list(enumerate(_decode(path, 1, raw), start=1))
    lines = enumerate(raw.splitlines(), start=1)
    return [(number, _decode(path, number, line)) for number, line in lines if line.strip()]


def _decode(path: Path, number: int, raw: bytes) -> Any:
    try:
        return msgspec.json.decode(raw)
    except msgspec.DecodeError as error:
        raise BadQuantity(f"{path}, line {number}: {error}") from None


def _conversation_at(path: Path, number: int, item: Any, default: str) -> Conversation:
    try:
        return _conversation(item, default)
    except (KeyError, TypeError, AttributeError):
        raise BadQuantity(
            f"{path}, entry {number}: no prompt, text, question, turns, messages or conversations in it"
        ) from None


def _conversation(item: dict[str, Any], default: str) -> Conversation:
    group = str(item.get("class") or item.get("category") or item.get("group") or default)
    for key in ("prompt", "text", "question"):
        if key in item:
            answer = item.get("answer") or item.get("completion")
            return Conversation(group, (str(item[key]),), answer_tokens=_lengths([answer]))
    if "turns" in item:
        return Conversation(group, tuple(str(turn) for turn in item["turns"]))
    return _from_messages(item["messages"] if "messages" in item else item["conversations"], group)


def _from_messages(messages: list[dict[str, str]], group: str) -> Conversation:
    """OpenAI's `role`/`content` or ShareGPT's `from`/`value`."""
    said = [
        (m.get("role") or m.get("from") or "", m.get("content") or m.get("value") or "") for m in messages
    ]
    users = tuple(text for role, text in said if role in ("user", "human") and text)
    system = "\n".join(text for role, text in said if role == "system")
    answers = [text for role, text in said if role in ("assistant", "gpt", "chatgpt", "bing", "bard")]
    return Conversation(group, users, system, _lengths(answers))


def _lengths(answers: Iterable[str | None]) -> tuple[int, ...]:
    return tuple(max(1, len(answer) // CHARS_PER_TOKEN) for answer in answers if answer)
