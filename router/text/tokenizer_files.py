"""Reads a tokenizer's files beside tokenizer.json, as transformers does."""

import json
from pathlib import Path
from typing import Any

import msgspec

OWN_TOKENS = "model_specific_special_tokens"


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
    """tokenizer_config.json, and with it what older tools wrote into special_tokens_map.json.

    The latter wins, but only where the former has no added_tokens_decoder. Special tokens without a name are
    in `extra_special_tokens`, whatever they were called; those with a name of the model's in `OWN_TOKENS`.
    """
    config = read_object(folder / "tokenizer_config.json")
    if "additional_special_tokens" in config and not config.get("extra_special_tokens"):
        config["extra_special_tokens"] = config.pop("additional_special_tokens")
    _split_named(config)
    if "added_tokens_decoder" not in config:
        older = read_object(folder / "special_tokens_map.json")
        listed, more = config.get("extra_special_tokens"), older.get("extra_special_tokens")
        config |= {name: _special(value) for name, value in older.items()}
        if isinstance(listed, list) and isinstance(more, list):
            config["extra_special_tokens"] = [*listed, *(token for token in more if token not in listed)]
        _split_named(config)
    if "additional_special_tokens" in config and "extra_special_tokens" not in config:
        config["extra_special_tokens"] = config.pop("additional_special_tokens")
    return config


def _split_named(config: dict[str, Any]) -> None:
    if isinstance(config.get("extra_special_tokens"), dict):
        config[OWN_TOKENS] = (config.get(OWN_TOKENS) or {}) | config.pop("extra_special_tokens")


def _special(value: Any) -> Any:
    """A token of special_tokens_map.json, marked as special."""
    return value | {"special": True} if isinstance(value, dict) and "content" in value else value
