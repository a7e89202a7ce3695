"""Small tokenizers of the kinds that the families have, as their tokenizer.json holds them."""

import functools
import json
from collections.abc import Callable

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

SPECIAL = ["<unk>", "<s>", "</s>", "<|endoftext|>"]
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]
LEARNED_FROM = [
    "The quick brown fox, größer 🦊 jumps  over the lazy dog's 12345. I'm don't\n\n x " * 5,
    "日本 テキスト, naïve café",
] * 20
QWEN2_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)


def byte_level(
    splits: pre_tokenizers.PreTokenizer, normalizer: normalizers.Normalizer | None = None
) -> Tokenizer:
    made = Tokenizer(models.BPE())
    made.pre_tokenizer, made.decoder = splits, decoders.ByteLevel()
    if normalizer is not None:
        made.normalizer = normalizer
    trainer = trainers.BpeTrainer(
        vocab_size=600,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    made.train_from_iterator(LEARNED_FROM, trainer)
    return made


def of_digits() -> Tokenizer:
    """SmolLM's kind: digits are split."""
    bytes_ = pre_tokenizers.ByteLevel(add_prefix_space=False)
    return byte_level(pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), bytes_]))


def of_qwen2() -> Tokenizer:
    split = pre_tokenizers.Split(Regex(QWEN2_WORDS), "isolated")
    bytes_ = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    return byte_level(pre_tokenizers.Sequence([split, bytes_]), normalizers.NFC())


def of_llama(uses_metaspace: bool) -> Tokenizer:
    """As of Llama 2: normalised, as its file has it, or split by Metaspace, as later ones have it."""
    made = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    if uses_metaspace:
        made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    else:
        made.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    parts = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    made.decoder = decoders.Sequence(parts)
    made.train_from_iterator(
        LEARNED_FROM, trainers.BpeTrainer(vocab_size=800, special_tokens=SPECIAL + BYTES, show_progress=False)
    )
    described = json.loads(made.to_str())
    described["added_tokens"] = [
        token for token in described["added_tokens"] if token["content"] in SPECIAL[:3]
    ]
    made = Tokenizer.from_str(json.dumps(described))
    first = [("<s>", made.token_to_id("<s>"))]
    made.post_processor = processors.TemplateProcessing("<s> $A", "<s> $A <s>:1 $B:1", first)
    return made


def of_unigram() -> Tokenizer:
    made = Tokenizer(models.Unigram())
    made.pre_tokenizer, made.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=200, special_tokens=SPECIAL, unk_token="<unk>", show_progress=False
    )
    made.train_from_iterator(LEARNED_FROM, trainer)
    return made


_KINDS: dict[str, Callable[[], Tokenizer]] = {
    "gpt2": lambda: byte_level(pre_tokenizers.ByteLevel(add_prefix_space=False)),
    "gpt2 with prefix": lambda: byte_level(pre_tokenizers.ByteLevel(add_prefix_space=True)),
    "smollm": of_digits,
    "qwen2": of_qwen2,
    "llama normalised": lambda: of_llama(False),
    "llama by metaspace": lambda: of_llama(True),
    "unigram": of_unigram,
}
KINDS = list(_KINDS)


@functools.cache
def tokenizer_json(kind: str) -> str:
    """What a tokenizer.json of this kind holds."""
    return _KINDS[kind]().to_str()
