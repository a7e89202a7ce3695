"""Prompts for text generation: lists that ship with the project, or the user's file.

A prompt is held out by its text alone, independent of list, order and seed. Tuning and calibration measure on
held-out prompts.
"""

import random
import tomllib
import zlib
from pathlib import Path
from typing import Any

import msgspec

SHIPPED = ("chat", "code")
FOLDER = Path(__file__).parent / "prompts"
HELD_OUT_OF = 10  # one in this many prompts is held out


class PromptsUnusable(ValueError):
    """An unusable prompt file. The message is one sentence that names the line."""


class Line(msgspec.Struct, frozen=True):
    """One line of a JSON Lines file of prompts."""

    prompt: str


def read_prompts(name: str) -> list[str]:
    """All prompts of a shipped list (`chat`, `code`) or of a file, each once, in the order given.

    A file is text with one prompt a line, or JSON Lines with a field `prompt`. Raises `PromptsUnusable`.
    """
    prompts = _shipped(FOLDER / f"{name}.toml") if name in SHIPPED else _own(Path(name))
    if not prompts:
        raise PromptsUnusable(f"{name} holds no prompts.")
    return list(dict.fromkeys(prompts))


def shuffled(prompts: list[str], seed: int) -> list[str]:
    """The prompts in an order that depends on the seed alone."""
    return random.Random(seed).sample(prompts, len(prompts))


def is_held_out(prompt: str) -> bool:
    """True for the prompts that nothing is ever trained on."""
    return zlib.crc32(prompt.encode()) % HELD_OUT_OF == 0


def encode_prompts(model: Path, prompts: list[str]) -> list[list[int]]:
    """Token ids of prompts in the model's chat template, or of bare prompts without one."""
    from transformers import AutoTokenizer  # seconds to import

    tokenizer: Any = AutoTokenizer.from_pretrained(model, local_files_only=True)
    if tokenizer.chat_template is None:
        return [tokenizer.encode(prompt) for prompt in prompts]
    texts = [
        tokenizer.apply_chat_template(
            [{"role": "user", "content": prompt}], tokenize=False, add_generation_prompt=True
        )
        for prompt in prompts
    ]
    return [tokenizer.encode(text, add_special_tokens=False) for text in texts]


def _shipped(path: Path) -> list[str]:
    groups = tomllib.loads(path.read_text())["group"]
    return [
        template.format(topic)
        for group in groups
        for template in group["templates"]
        for topic in group["topics"]
    ]


def _own(path: Path) -> list[str]:
    try:
        lines = path.read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise PromptsUnusable(f"{path} cannot be read: {reason}.") from None
    is_json = path.suffix == ".jsonl"
    return [_prompt(path, number, line, is_json) for number, line in enumerate(lines, 1) if line.strip()]


def _prompt(path: Path, number: int, line: str, is_json: bool) -> str:
    if not is_json:
        return line.strip()
    try:
        return msgspec.json.decode(line, type=Line).prompt
    except msgspec.DecodeError as error:
        raise PromptsUnusable(f"Line {number} of {path}: {error}.") from None
