"""Reads a tokenizer's files beside tokenizer.json, as transformers does."""

import json
from pathlib import Path
from typing import Any

import msgspec


class TokenizerUnreadable(OSError):
    """A tokenizer file is unusable or asks for something unsupported; the message, one sentence, names it."""


def read_object(path: Path) -> dict[str, Any]:
    """A JSON object in a file, empty without one. Raises `TokenizerUnreadable`."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError) as error:
        raise TokenizerUnreadable(f"{path} cannot be read ({error}): fetch the model again") from None
    if not isinstance(value, dict):
        raise TokenizerUnreadable(f"{path} cannot be read (it is no JSON object): fetch the model again")
    return value


def read_parts(path: Path) -> dict[str, msgspec.Raw]:
    """The parts of a tokenizer.json, undecoded: a vocabulary would hold up other threads for 0.1 s."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=dict[str, msgspec.Raw])
    except (OSError, UnicodeDecodeError, RecursionError, msgspec.DecodeError) as error:
        raise TokenizerUnreadable(f"{path} cannot be read ({error}): fetch the model again") from None


def tokenizer_config(folder: Path) -> dict[str, Any]:
    """tokenizer_config.json merged with special_tokens_map.json, which older tools wrote.

    The latter wins, but only if the former has no added_tokens_decoder. The result has
    `additional_special_tokens`, which newer tools call `extra_special_tokens`, under that name.
    """
    config = _renamed(read_object(folder / "tokenizer_config.json"))
    if "added_tokens_decoder" in config:
        return config
    path = folder / "special_tokens_map.json"
    older = {name: _special(value) for name, value in read_object(path).items()}
    listed, more = config.get("extra_special_tokens"), older.get("extra_special_tokens")
    if isinstance(listed, list) and isinstance(more, list):
        older["extra_special_tokens"] = [*listed, *(token for token in more if token not in listed)]
    return config | _renamed(older, is_taken=bool(listed))


def _renamed(config: dict[str, Any], is_taken: bool = False) -> dict[str, Any]:
    if not config.get("additional_special_tokens") or config.get("extra_special_tokens"):
        return config
    others = {name: value for name, value in config.items() if name != "additional_special_tokens"}
    return others if is_taken else others | {"extra_special_tokens": config["additional_special_tokens"]}


def _special(value: Any) -> Any:
    """A token of special_tokens_map.json, marked as special."""
    return value | {"special": True} if isinstance(value, dict) and "content" in value else value
