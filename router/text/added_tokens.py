"""Tokens that a model folder names beside tokenizer.json, added as transformers adds them.

Tools that extend a vocabulary often write them into tokenizer_config.json or special_tokens_map.json alone: a
prompt that holds one would otherwise be cut into other ids than the model was trained on.
"""

import hashlib
from pathlib import Path
from typing import Any

import msgspec
import tokenizers

_NAMED = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
_FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")


class TokenizerUnreadable(OSError):
    """A tokenizer file is unusable; the message, one sentence, names it."""


def read_backend(folder: Path) -> tokenizers.Tokenizer:
    """The tokenizer of a model folder with all of its tokens. Raises `OSError` with one sentence."""
    path = folder / "tokenizer.json"
    if not path.is_file():
        raise FileNotFoundError(f"the model folder has no tokenizer: {path} is missing")
    try:
        backend = tokenizers.Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises nothing narrower
        raise TokenizerUnreadable(f"{path} is no tokenizer ({error}): fetch the model again") from None
    add_tokens(backend, folder)
    return backend


def digest_of(backend: tokenizers.Tokenizer, folder: Path) -> str:
    """Digest of tokenizer.json and of the tokens that other files add. Costs one hash of the file."""
    added = sorted((id, repr(token)) for id, token in backend.get_added_tokens_decoder().items())
    content = (folder / "tokenizer.json").read_bytes() + repr(added).encode()
    return hashlib.sha256(content).hexdigest()[:12]


def add_tokens(backend: tokenizers.Tokenizer, folder: Path) -> None:
    """Add tokens that files beside tokenizer.json name and tokenizer.json lacks."""
    path, config = folder / "tokenizer_config.json", tokenizer_config(folder)
    for id, described in sorted(_described(config, path).items()):
        if backend.id_to_token(id) == described.content and described.content in _added(backend):
            continue
        backend.add_tokens([described])
        if backend.token_to_id(described.content) != id:
            raise TokenizerUnreadable(
                f"{path}: added_tokens_decoder gives {described.content!r} the id {id}, "
                f"where tokenizer.json leaves it {backend.token_to_id(described.content)}"
            )
    known = _added(backend)
    try:
        special = _special(config)
    except (AttributeError, KeyError, TypeError) as error:
        raise TokenizerUnreadable(f"{path}: a special token is no text ({error!r})") from None
    backend.add_special_tokens([token for token in special if token.content not in known])


def tokenizer_config(folder: Path) -> dict[str, Any]:
    """tokenizer_config.json merged, as in transformers, with files that older tools wrote beside it.

    Where it has no added_tokens_decoder, special_tokens_map.json wins, and added_tokens.json (token to
    id) takes the decoder's place.
    """
    config = read_object(folder / "tokenizer_config.json")
    if "added_tokens_decoder" in config:
        return config
    config |= read_object(folder / "special_tokens_map.json")
    older = read_object(folder / "added_tokens.json")
    if older:
        special = _contents(config)
        config["added_tokens_decoder"] = {
            id: {"content": token, "special": token in special, "normalized": token not in special}
            for token, id in older.items()
        }
    return config


def _contents(config: dict[str, Any]) -> set[str]:
    """The texts of the special tokens that a configuration names."""
    named = [config.get(name) for name in _NAMED] + list(config.get("extra_special_tokens") or [])
    texts = [token.get("content") if isinstance(token, dict) else token for token in named]
    return {text for text in texts if isinstance(text, str)}


def read_object(path: Path) -> dict[str, Any]:
    """A JSON object in a file, empty without one. Raises `TokenizerUnreadable`."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=dict[str, Any])
    except FileNotFoundError:
        return {}
    except (OSError, msgspec.DecodeError) as error:
        raise TokenizerUnreadable(f"{path} cannot be read ({error}): fetch the model again") from None


def _described(config: dict[str, Any], path: Path) -> dict[int, tokenizers.AddedToken]:
    try:
        entries = {int(id): token for id, token in (config.get("added_tokens_decoder") or {}).items()}
        return {id: _token(token) for id, token in entries.items()}
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise TokenizerUnreadable(f"{path}: added_tokens_decoder is no table of tokens ({error})") from None


def _special(config: dict[str, Any]) -> list[tokenizers.AddedToken]:
    """A configuration's special tokens, the named and the additional ones."""
    others = config.get("extra_special_tokens") or config.get("additional_special_tokens") or []
    listed = list(others.values()) if isinstance(others, dict) else others
    return [
        _token(token, special=True) for token in (*(config.get(name) for name in _NAMED), *listed) if token
    ]


def _token(described: str | dict[str, Any], special: bool = False) -> tokenizers.AddedToken:
    if isinstance(described, str):
        return tokenizers.AddedToken(described, special=special, normalized=not special)
    flags = {name: bool(described[name]) for name in _FLAGS if name in described}
    return tokenizers.AddedToken(described["content"], **({"special": special} | flags))


def _added(backend: tokenizers.Tokenizer) -> set[str]:
    return {token.content for token in backend.get_added_tokens_decoder().values()}
