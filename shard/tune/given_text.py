"""Reads training text from a file, as an alternative to the model's own text.

One passage per line, or JSON Lines with `text` and an optional `prompt`, which is not learned.
"""

import zlib
from pathlib import Path
from typing import Any

import msgspec

from shard.tune.prompts import HELD_OUT_OF
from shard.tune.text import Passage

MAX_TOKENS = 1024  # of a passage; longer texts are cut


class TextUnusable(ValueError):
    """An unusable text file. The message is one sentence that names the line."""


class Line(msgspec.Struct, frozen=True):
    """One line of a JSON Lines file. With a prompt, only the text behind it is learned."""

    text: str
    prompt: str = ""


def read_text(model: Path, path: Path, max_tokens: int) -> list[Passage]:
    """All passages of a file, as tokens; one in ten is held out. Raises `TextUnusable`."""
    from transformers import AutoTokenizer  # seconds to import

    tokenizer: Any = AutoTokenizer.from_pretrained(model, local_files_only=True)
    passages = []
    for line in _lines(path):
        ids = tokenizer.encode(line.prompt + line.text)
        num_prompt = max(1, len(tokenizer.encode(line.prompt))) if line.prompt else 1
        held_out = zlib.crc32(line.text.encode()) % HELD_OUT_OF == 0
        size = min(MAX_TOKENS, max_tokens)
        for first in range(0, len(ids), size):
            piece = ids[first : first + size]
            own_prompt = max(1, num_prompt - first)
            if len(piece) > own_prompt:
                passages.append(Passage(piece, own_prompt, held_out))
    if not passages:
        raise TextUnusable(f"{path} holds no text of two tokens or more.")
    return passages


def _lines(path: Path) -> list[Line]:
    try:
        texts = path.read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise TextUnusable(f"{path} cannot be read: {reason}.") from None
    is_json = path.suffix == ".jsonl"
    return [_line(path, number, text, is_json) for number, text in enumerate(texts, 1) if text.strip()]


def _line(path: Path, number: int, text: str, is_json: bool) -> Line:
    if not is_json:
        return Line(text)
    try:
        return msgspec.json.decode(text, type=Line)
    except msgspec.DecodeError as error:
        raise TextUnusable(f"Line {number} of {path}: {error}.") from None
