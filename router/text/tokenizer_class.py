"""Applies a folder's tokenizer class to its tokenizer.json, as transformers 5 does.

Most classes use the file unchanged. Those of Llama, GPT-2 and Qwen use its vocabulary, merges and special
tokens around a text, but split text in their own way, so that ids may differ from the file's.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import tokenizers
from tokenizers import Regex, decoders, normalizers, pre_tokenizers

from router.text.tokenizer_files import TokenizerUnreadable, read_object

CONFIG = "tokenizer_config.json"
AS_IT_STANDS = ("TokenizersBackend", "PreTrainedTokenizer", "BloomTokenizer")
_END = "<|endoftext|>"
_BYTE_LEVEL = b'"ByteLevel"'
_WORDS_OF_QWEN2 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|"
    r"\s+(?!\S)|\s+"
)
_NO_FLAGS = {
    "dropout": None,
    "unk_token": None,
    "continuing_subword_prefix": None,
    "end_of_word_suffix": None,
    "ignore_merges": False,
}


Parts = dict[str, msgspec.Raw]


class _Model(msgspec.Struct):
    type: str = "BPE"


class TokenizerClass(msgspec.Struct, frozen=True):
    """A class that splits text in its own way. `tokens` are its special tokens if the folder names none."""

    name: str
    tokens: dict[str, str]
    model: dict[str, Any]
    set_up: Callable[[tokenizers.Tokenizer, dict[str, Any]], None]
    is_byte_level: bool = True
    adds_special_tokens_again: bool = False  # which resets their flags

    def build(self, parts: Parts, config: dict[str, Any]) -> tokenizers.Tokenizer:
        """Build the tokenizer from a tokenizer.json, without added tokens. Raises as `tokenizers` does."""
        own: dict[str, Any] = {"normalizer": None, "pre_tokenizer": None, "decoder": None, "added_tokens": []}
        own["model"] = {**msgspec.json.decode(parts["model"], type=Parts), **_NO_FLAGS, **self.model}
        backend = tokenizers.Tokenizer.from_str(msgspec.json.encode({**parts, **own}).decode())
        self.set_up(backend, config)
        return backend


def _llama(backend: tokenizers.Tokenizer, config: dict[str, Any]) -> None:
    has_prefix = config.get("add_prefix_space") is not False
    scheme = ("always" if config.get("legacy") else "first") if has_prefix else "never"
    backend.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme=scheme, split=False)
    strip = [decoders.Strip(content=" ", left=1)] if has_prefix else []
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), *strip]
    )


def _gpt2(backend: tokenizers.Tokenizer, config: dict[str, Any]) -> None:
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=bool(config.get("add_prefix_space")))
    backend.decoder = decoders.ByteLevel()


def _qwen2(backend: tokenizers.Tokenizer, config: dict[str, Any]) -> None:
    has_prefix = bool(config.get("add_prefix_space"))
    backend.normalizer = normalizers.NFC()
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_WORDS_OF_QWEN2), behavior="isolated", invert=False),
            pre_tokenizers.ByteLevel(add_prefix_space=has_prefix, use_regex=False),
        ]
    )
    backend.decoder = decoders.ByteLevel()


_BYTES = {"fuse_unk": False, "byte_fallback": False}
LLAMA = TokenizerClass(
    "LlamaTokenizer",
    {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"},
    {"fuse_unk": True, "byte_fallback": True},
    _llama,
    is_byte_level=False,
)
GPT2 = TokenizerClass(
    "GPT2Tokenizer", {"bos_token": _END, "eos_token": _END, "unk_token": _END}, _BYTES, _gpt2
)
QWEN2 = TokenizerClass(
    "Qwen2Tokenizer",
    {"eos_token": _END, "unk_token": _END, "pad_token": _END},
    _BYTES,
    _qwen2,
    adds_special_tokens_again=True,
)
_CLASSES = {known.name: known for known in (LLAMA, GPT2, QWEN2)}
_OF_FAMILY = {"gpt2": GPT2, "opt": GPT2, "qwen2": QWEN2, "qwen3": QWEN2}


def class_of(folder: Path, config: dict[str, Any]) -> TokenizerClass | None:
    """The folder's class; None if tokenizer.json is used unchanged. Raises `TokenizerUnreadable`.

    `config` is the merged content of the files beside tokenizer.json.
    """
    model = read_object(folder / "config.json")
    family = str(model.get("model_type"))
    declared = config.get("tokenizer_class") or model.get("tokenizer_class")
    if family == "qwen2" or (declared is None and family in _OF_FAMILY):
        return _OF_FAMILY[family]
    name = str(declared).removesuffix("Fast")
    if declared is None or family == "mistral" or name in AS_IT_STANDS:
        return None
    if name not in _CLASSES:
        file = CONFIG if config.get("tokenizer_class") else "config.json"
        raise TokenizerUnreadable(
            f"{folder / file}: tokenizer_class {declared!r} is not supported: supported are "
            f"{', '.join(_CLASSES)}, and {AS_IT_STANDS[0]} for tokenizer.json as it stands"
        )
    # what says LlamaTokenizer and is of bytes, as Llama 3's, is none
    return None if name == LLAMA.name and is_byte_level(folder) else _CLASSES[name]


def is_byte_level(folder: Path) -> bool:
    path = folder / "tokenizer.json"
    return path.is_file() and _BYTE_LEVEL in path.read_bytes()


def check(folder: Path, config: dict[str, Any], parts: Parts, known: TokenizerClass | None) -> None:
    """Raises `TokenizerUnreadable` for what would change ids or texts and is not supported.

    `parts` are those of tokenizer.json, `known` is the result of `class_of`.
    """
    path = folder / CONFIG
    is_bpe = msgspec.json.decode(parts.get("model", b"{}"), type=_Model).type == "BPE"
    if known is not None and (not is_bpe or is_byte_level(folder) != known.is_byte_level):
        raise TokenizerUnreadable(
            f"{path}: a {known.name} (tokenizer_class, or that of the model's family) has no use for the "
            "vocabulary in tokenizer.json, which is of another kind"
        )
    for name in ("add_prefix_space", "split_special_tokens"):
        if not isinstance(config.get(name), bool | None):
            raise TokenizerUnreadable(f"{path}: {name} is {config[name]!r}, not true or false")
    for name, problem in _unsupported(config, is_bpe):
        raise TokenizerUnreadable(f"{path}: {name} {problem}")


def _unsupported(config: dict[str, Any], is_bpe: bool) -> list[tuple[str, str]]:
    found = []
    if config.get("auto_map"):
        found.append(("auto_map", "names code of the model's own, which is not run: take the key out"))
    if config.get("fix_mistral_regex"):
        found.append(("fix_mistral_regex", "is not supported: save the tokenizer with it applied"))
    if any(name != "tokenizer.json" for name in config.get("fast_tokenizer_files") or []):
        found.append(("fast_tokenizer_files", "names other files than tokenizer.json: take the key out"))
    force = "clean_up_tokenization_spaces_for_bpe_even_though_it_will_corrupt_output"
    if config.get("clean_up_tokenization_spaces") and (not is_bpe or config.get(force)):
        found.append(("clean_up_tokenization_spaces", "is not supported: take the key out"))
    return found
