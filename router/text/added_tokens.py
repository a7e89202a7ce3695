"""The tokenizer of a model folder, and the tokens that its files add to it, as in transformers.

Tools that extend a vocabulary often write tokens into tokenizer_config.json or special_tokens_map.json alone:
a prompt that holds one would otherwise be cut into other ids than the model was trained on.
"""

import hashlib
from pathlib import Path
from typing import Any

import msgspec
import tokenizers

from router.text.tokenizer_class import CONFIG, TokenizerClass, check, class_of
from router.text.tokenizer_files import (
    OWN_TOKENS,
    TokenizerUnreadable,
    read_object,
    read_parts,
    tokenizer_config,
)

_NAMED = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
_FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")

Tokens = list[tokenizers.AddedToken]


def read_backend(folder: Path) -> tokenizers.Tokenizer:
    """The tokenizer of a model folder with all of its tokens. Raises `OSError` with one sentence."""
    path = folder / "tokenizer.json"
    if not path.is_file():
        raise FileNotFoundError(f"the model folder has no tokenizer: {path} is missing")
    config = tokenizer_config(folder)
    known = class_of(folder, config)
    parts = read_parts(path)
    try:
        added = msgspec.json.decode(parts.get("added_tokens", b"[]"), type=list[dict[str, Any]] | None)
        in_file = {token["id"]: _token(token) for token in added or []}
        check(folder, config, parts, known)
        backend = known.build(parts, config) if known else tokenizers.Tokenizer.from_file(str(path))
    except TokenizerUnreadable:
        raise
    except Exception as error:  # the library raises nothing narrower
        raise TokenizerUnreadable(f"{path} is no tokenizer ({error}): fetch the model again") from None
    _add_tokens(backend, folder, config, in_file, known)
    backend.encode_special_tokens = bool(config.get("split_special_tokens"))
    return backend


def digest_of(backend: tokenizers.Tokenizer, folder: Path) -> str:
    """Digest of tokenizer.json and of what other files make of it. Costs one hash of the file."""
    added = sorted((id, repr(token)) for id, token in backend.get_added_tokens_decoder().items())
    parts = (backend.normalizer, backend.pre_tokenizer, backend.decoder, backend.encode_special_tokens, added)
    content = (folder / "tokenizer.json").read_bytes() + repr(parts).encode()
    return hashlib.sha256(content).hexdigest()[:12]


def special_tokens(folder: Path) -> dict[str, str]:
    """Texts of `bos_token` and the like, for chat templates: those of the files, else those of the class."""
    config = tokenizer_config(folder)
    known = class_of(folder, config)
    return named_texts((known.tokens if known else {}) | config)


def named_texts(config: dict[str, Any]) -> dict[str, str]:
    """The texts of `bos_token` and the like, given as a string or as the token's description."""
    tokens = {name: value for name, value in config.items() if name.endswith("_token")}
    tokens |= config.get(OWN_TOKENS) or {}
    texts = {
        name: value.get("content") if isinstance(value, dict) else value for name, value in tokens.items()
    }
    return {name: text for name, text in texts.items() if isinstance(text, str)}


def _add_tokens(
    backend: tokenizers.Tokenizer,
    folder: Path,
    config: dict[str, Any],
    in_file: dict[int, tokenizers.AddedToken],
    known: TokenizerClass | None,
) -> None:
    """Add the tokens that the backend lacks or has with other flags, in transformers' order."""
    path = folder / CONFIG
    try:
        named, others = _special((known.tokens if known else {}) | config)
    except (AttributeError, KeyError, TypeError) as error:
        raise TokenizerUnreadable(f"{path}: a special token is no text ({error!r})") from None
    described = (
        _described(config, path) if "added_tokens_decoder" in config else _older(folder, config) | in_file
    )
    present = backend.get_added_tokens_decoder().values()
    reprs = {repr(token) for token in present}
    new = [token for _, token in sorted(described.items()) if repr(token) not in reprs]
    contents = {token.content for token in (*present, *new)}
    new += [token for token in (*named, *others) if token.content not in contents]
    for token in new:
        token.special |= any(token.content == name.content for name in named)
    backend.add_tokens(new)
    if known and known.adds_special_tokens_again:
        backend.add_tokens([_token(token.content, special=True) for token in (*named, *others)])
    for id, token in described.items():
        if backend.token_to_id(token.content) != id:
            raise TokenizerUnreadable(
                f"{path}: added_tokens_decoder gives {token.content!r} the id {id}, "
                f"where tokenizer.json leaves it {backend.token_to_id(token.content)}"
            )


def _described(config: dict[str, Any], path: Path) -> dict[int, tokenizers.AddedToken]:
    try:
        entries = {int(id): token for id, token in (config.get("added_tokens_decoder") or {}).items()}
        return {id: _token(token) for id, token in entries.items()}
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise TokenizerUnreadable(f"{path}: added_tokens_decoder is no table of tokens ({error})") from None


def _older(folder: Path, config: dict[str, Any]) -> dict[int, tokenizers.AddedToken]:
    """Tokens of added_tokens.json, a table from token to id."""
    path = folder / "added_tokens.json"
    try:
        ids = msgspec.convert(read_object(path), dict[str, int])
    except msgspec.ValidationError as error:
        raise TokenizerUnreadable(f"{path} is no table from tokens to ids ({error})") from None
    special = _contents(config)
    return {
        id: tokenizers.AddedToken(text, special=text in special, normalized=text not in special)
        for text, id in ids.items()
    }


def _contents(config: dict[str, Any]) -> set[str]:
    """Texts of the special tokens that count as such in added_tokens.json: not those of type `AddedToken`."""
    tokens = [config.get(name) for name in _NAMED] + list(config.get("extra_special_tokens") or [])
    texts = [
        token.get("content") if isinstance(token, dict) and "__type" not in token else token
        for token in tokens
    ]
    return {text for text in texts if isinstance(text, str)}


def _special(config: dict[str, Any]) -> tuple[Tokens, Tokens]:
    """A configuration's special tokens: those with a name, and the additional ones."""
    own = {
        name: value
        for name, value in config.items()
        if name.endswith("_token") and name not in _NAMED and isinstance(value, str | dict)
    } | (config.get(OWN_TOKENS) or {})
    named = [*(config.get(name) for name in _NAMED), *own.values()]
    return (
        [_token(token, special=True) for token in named if token],
        [_token(token, special=True) for token in config.get("extra_special_tokens") or [] if token],
    )


def _token(described: str | dict[str, Any], special: bool = False) -> tokenizers.AddedToken:
    if isinstance(described, str):
        return tokenizers.AddedToken(described, special=special, normalized=not special)
    flags = {name: bool(described[name]) for name in _FLAGS if name in described}
    token = tokenizers.AddedToken(described["content"], **flags)
    token.special |= special
    return token
