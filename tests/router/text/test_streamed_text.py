"""A stream's pieces are the answer, and the answer is what `decode` says, for every kind of tokenizer."""

import json
import re
from collections.abc import Callable

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

from router.text.tokenizer import Tokenizer
from shard.messages import TokenOutput

TEXTS = [
    "The quick brown fox, größer 🦊 jumps  over the lazy dog. " * 5,
    "日本 テキスト, naïve café",
] * 20
SPECIAL = ["<unk>", "<s>", "</s>"]
METASPACE = "\u2581"  # which stands for a space to tokenizers that have it: they give back a space
PLAIN = st.text(max_size=12).filter(lambda text: not any(token in text for token in (*SPECIAL, METASPACE)))
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]
PROMPT = "The quick"


def byte_level(has_prefix: bool) -> tokenizers.Tokenizer:
    made = tokenizers.Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=has_prefix)
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=500,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    made.train_from_iterator(TEXTS, trainer)
    return made


def with_byte_fallback(has_prefix: bool, uses_metaspace: bool) -> tokenizers.Tokenizer:
    """As of Llama 2 (normalised) and of its kin (Metaspace)."""
    made = tokenizers.Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>"))
    if uses_metaspace:
        scheme = "always" if has_prefix else "never"
        made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme)
        parts = [decoders.ByteFallback(), decoders.Metaspace(prepend_scheme=scheme), decoders.Fuse()]
    else:
        prefix = [normalizers.Prepend("▁")] if has_prefix else []
        made.normalizer = normalizers.Sequence([*prefix, normalizers.Replace(" ", "▁")])
        parts = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
        parts += [decoders.Strip(" ", 1, 0)] if has_prefix else []
    made.decoder = decoders.Sequence(parts)
    trainer = trainers.BpeTrainer(vocab_size=700, special_tokens=SPECIAL + BYTES, show_progress=False)
    made.train_from_iterator(TEXTS, trainer)
    described = json.loads(made.to_str())
    described["added_tokens"] = [token for token in described["added_tokens"] if token["content"] in SPECIAL]
    return tokenizers.Tokenizer.from_str(json.dumps(described))


def unigram(has_prefix: bool) -> tokenizers.Tokenizer:
    made = tokenizers.Tokenizer(models.Unigram())
    scheme = "always" if has_prefix else "never"
    made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme)
    made.decoder = decoders.Metaspace(prepend_scheme=scheme)
    trainer = trainers.UnigramTrainer(
        vocab_size=200, special_tokens=SPECIAL, unk_token="<unk>", show_progress=False
    )
    made.train_from_iterator(TEXTS, trainer)
    return made


KINDS: dict[str, Callable[[], tokenizers.Tokenizer]] = {
    "byte-level": lambda: byte_level(False),
    "byte-level, prefix space": lambda: byte_level(True),
    "byte fallback": lambda: with_byte_fallback(False, False),
    "byte fallback, prefix space": lambda: with_byte_fallback(True, False),
    "metaspace": lambda: with_byte_fallback(False, True),
    "metaspace, prefix space": lambda: with_byte_fallback(True, True),
    "unigram": lambda: unigram(False),
    "unigram, prefix space": lambda: unigram(True),
}


@pytest.fixture(scope="module", params=list(KINDS))
def backend(request: pytest.FixtureRequest) -> tokenizers.Tokenizer:
    return KINDS[request.param]()


def streamed(tokenizer: Tokenizer, prompt: list[int], ids: list[int]) -> tuple[str, str]:
    """The pieces as a client gets them, what was left of a character with the last, and the answer."""
    detokenizer = tokenizer.detokenizer(prompt)
    tokens = [detokenizer.push(TokenOutput(id, -1.0, 1)) for id in ids]
    pieces = "".join(token.text for token in tokens if not token.special)
    return pieces + detokenizer.text[len(pieces) :], detokenizer.text


def decoded(backend: tokenizers.Tokenizer, prompt: list[int], ids: list[int]) -> str:
    """What `decode` adds to the prompt's text for the answer's tokens.

    Byte tokens that are no UTF-8 become one U+FFFD for each ill-formed piece, as of byte-level tokenizers and
    of Python; `decode` writes one for each byte of the whole run, the valid ones too, which no stream can
    know before the run has ended.
    """
    marked = [backend.id_to_token(id) for id in ids]
    if not any(re.fullmatch(r"<0x[0-9A-F]{2}>", token) for token in marked):
        whole, base = backend.decode(prompt + ids), backend.decode(prompt)
        assert whole.startswith(base)
        return whole[len(base) :]
    raw = b""
    for id, token in zip(ids, marked, strict=True):
        if match := re.fullmatch(r"<0x([0-9A-F]{2})>", token):
            raw += bytes.fromhex(match[1])
        elif token not in SPECIAL:
            raw += backend.decode([*prompt, id])[len(backend.decode(prompt)) :].encode()
    return raw.decode("utf-8", "replace")


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_a_stream_is_the_answer_and_the_answer_is_what_decode_says(backend, data):
    ids = data.draw(st.lists(st.integers(0, backend.get_vocab_size() - 1), min_size=1, max_size=10))
    prompt = backend.encode(PROMPT).ids
    pieces, answer = streamed(Tokenizer(backend), prompt, ids)
    assert pieces == answer == decoded(backend, prompt, ids)


@settings(max_examples=60, deadline=None)
@given(text=PLAIN)
def test_text_comes_back_as_it_was(backend, text):
    encoding = backend.encode(text, add_special_tokens=False)
    if backend.token_to_id("<unk>") not in encoding.ids:
        prompt = backend.encode(PROMPT).ids
        _, answer = streamed(Tokenizer(backend), prompt, encoding.ids)
        assert answer.lstrip(" ") == text.lstrip(" ")
