"""Text to tokens and back, against the `tokenizers` library's own decoding of the whole."""

import itertools
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import decoders, models, normalizers

from router.text.tokenizer import Detokenizer, Tokenizer
from shard.messages import TokenOutput
from tests.router.http_fakes import EOS, VOCAB_SIZE, byte_tokenizer

BYTE_LEVEL = byte_tokenizer()


def sentencepiece_like() -> Tokenizer:
    """Metaspaces, bytes for what the pieces do not cover, and a decoder that strips one leading blank."""
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    pieces += ["▁", *"abcdehlorw", "▁hello", "▁world", "ab"]
    vocabulary = {piece: id for id, piece in enumerate(pieces)}
    merges: list[tuple[str, str]] = []
    backend = tokenizers.Tokenizer(models.BPE(vocabulary, merges, byte_fallback=True, unk_token="<unk>"))
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    backend.add_special_tokens(["<s>", "</s>"])
    return Tokenizer(backend)


METASPACE = sentencepiece_like()
BOS = 1
NOT_BYTES = st.sampled_from([id for id in range(METASPACE.vocab_size) if not 3 <= id < 259]).map(
    lambda id: [id]
)
CHARACTERS = st.characters(codec="utf-8").map(lambda c: [3 + byte for byte in c.encode()])


def pieces(detokenizer: Detokenizer, ids: list[int]) -> list[str]:
    """The text of each token; that of special ones is left out."""
    tokens = [detokenizer.push(TokenOutput(id, 0.0, 1)) for id in ids]
    return ["" if token.special else token.text for token in tokens]


@given(st.lists(st.integers(0, VOCAB_SIZE - 1), max_size=60))
def test_pieces_of_random_bytes_make_the_text_of_all(ids: list[int]) -> None:
    detokenizer = BYTE_LEVEL.detokenizer([])
    shown = "".join(pieces(detokenizer, ids))
    assert detokenizer.text == BYTE_LEVEL.decode(ids)
    assert detokenizer.text.startswith(shown)
    assert set(detokenizer.text[len(shown) :]) <= {"\ufffd"}


@given(st.lists(st.one_of(NOT_BYTES, CHARACTERS), max_size=30))
def test_pieces_of_byte_fallback_make_the_text_of_all(parts: list[list[int]]) -> None:
    ids = list(itertools.chain(*parts))
    prompt = METASPACE.encode("hello")
    shown = "".join(pieces(METASPACE.detokenizer(prompt), ids))
    assert METASPACE.decode(prompt) + shown == METASPACE.decode(prompt + ids)


@given(st.text(max_size=40))
def test_encoding_is_undone(text: str) -> None:
    assert BYTE_LEVEL.decode(BYTE_LEVEL.encode(text)) == text


def test_a_blank_before_a_word_is_kept_as_it_goes_on_from_the_prompt() -> None:
    texts = [METASPACE.piece(id).text for id in range(METASPACE.vocab_size)]
    assert " world" in texts


@pytest.mark.parametrize("tokenizer", [BYTE_LEVEL, METASPACE], ids=["byte-level", "byte-fallback"])
def test_a_character_is_shown_when_it_is_whole(tokenizer: Tokenizer) -> None:
    bytes_of = {tokenizer.piece(id).raw: id for id in range(tokenizer.vocab_size)}
    ids = [bytes_of[bytes([byte])] for byte in "€😀".encode()]
    assert pieces(tokenizer.detokenizer([]), ids) == ["", "", "€", "", "", "", "😀"]


def test_broken_characters_neither_stall_nor_grow() -> None:
    broken = [3 + 0xF0] * 500
    detokenizer = METASPACE.detokenizer([BOS])
    shown = pieces(detokenizer, broken)
    assert "".join(shown) == "\ufffd" * 499
    assert detokenizer.text == "\ufffd" * 500


def test_a_character_that_the_prompt_began_is_ended_by_the_answer() -> None:
    ids = BYTE_LEVEL.encode("a😀")
    assert pieces(BYTE_LEVEL.detokenizer(ids[:3]), ids[3:]) == ["", "😀"]


def test_special_tokens_are_no_text_and_split_no_character() -> None:
    first, *rest = BYTE_LEVEL.encode("é")
    detokenizer = BYTE_LEVEL.detokenizer([])
    tokens = [detokenizer.push(TokenOutput(id, 0.0, 1)) for id in (first, EOS, *rest)]
    assert [(token.text, token.special) for token in tokens] == [("", False), ("<eos>", True), ("é", False)]
    assert detokenizer.text == "é"


def test_an_id_outside_the_vocabulary_adds_nothing() -> None:
    assert pieces(BYTE_LEVEL.detokenizer([]), [VOCAB_SIZE + 5]) == [""]


def test_alternatives_come_with_their_text() -> None:
    a, b = BYTE_LEVEL.encode("ab")
    token = BYTE_LEVEL.detokenizer([]).push(TokenOutput(a, -0.1, 2, 0.7, [(a, -0.1), (b, -2.0)]))
    assert [(id, alone.text, p) for id, alone, p in token.top] == [(a, "a", -0.1), (b, "b", -2.0)]
    assert (token.exit_layer, token.confidence) == (2, 0.7)


@given(
    st.text("ab", max_size=30),
    st.lists(st.text("ab", min_size=1, max_size=4), min_size=1, max_size=3),
)
def test_the_first_stop_is_found_with_the_token_that_completes_it(text: str, stops: list[str]) -> None:
    detokenizer = BYTE_LEVEL.detokenizer([])
    for end, id in enumerate(BYTE_LEVEL.encode(text), start=1):
        detokenizer.push(TokenOutput(id, 0.0, 1))
        found = detokenizer.find_stop(tuple(stops))
        if any(stop in text[:end] for stop in stops):
            first = min(stops, key=lambda stop: (text[:end].find(stop) % (end + 1), stop))
            assert found is not None
            assert text[:end].find(found) == text[:end].find(first)
            return
        assert found is None


def test_a_stop_may_name_a_special_token() -> None:
    detokenizer = BYTE_LEVEL.detokenizer([])
    detokenizer.push(TokenOutput(EOS, 0.0, 1))
    assert detokenizer.find_stop(("<eos>",)) == "<eos>"


def test_ids_and_chat_prompts_are_those_of_transformers(tiny_model: Callable[[str], Path]) -> None:
    from transformers import AutoTokenizer

    folder = tiny_model("llama")
    ours, theirs = Tokenizer.load(folder), AutoTokenizer.from_pretrained(folder)
    text = "Once upon a time <|im_end|> é 😀\n\n  there"
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": text}]
    assert ours.encode(text) == theirs.encode(text)
    assert ours.apply_chat_template(messages) == theirs.apply_chat_template(
        messages, tokenize=False, add_generation_prompt=True
    )
    ids = ours.encode(text)
    assert ours.decode(ids) == theirs.decode(ids, skip_special_tokens=True)


def test_spans_say_which_characters_a_token_stands_for() -> None:
    spans = list(BYTE_LEVEL.encode_spans("aé"))
    assert [(span.text, span.start, span.stop) for span in spans] == [("a", 0, 1), ("é", 1, 2), ("é", 1, 2)]


def test_a_folder_without_tokenizer_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="has no tokenizer"):
        Tokenizer.load(tmp_path)


def test_a_digest_is_of_what_decides_ids_and_of_nothing_else(tmp_path: Path) -> None:
    """Folders that differ in their chat template alone have the same; one more token makes another."""
    backend = byte_tokenizer(None).backend
    folders = {name: tmp_path / name for name in ("plain", "templated", "extended")}
    for folder in folders.values():
        folder.mkdir()
        backend.save(str(folder / "tokenizer.json"))
    config = {"chat_template": "{{ messages[0].content }}"}
    (folders["templated"] / "tokenizer_config.json").write_text(json.dumps(config))
    more = {"added_tokens_decoder": {str(backend.get_vocab_size()): {"content": "<more>"}}}
    (folders["extended"] / "tokenizer_config.json").write_text(json.dumps(more))
    digests = {name: Tokenizer.load(folder).digest for name, folder in folders.items()}
    assert digests["plain"] == digests["templated"] != digests["extended"]


def test_the_digest_of_a_folder_is_known_when_it_was_read(tmp_path: Path) -> None:
    """To write the whole tokenizer out would hold up the event loop for a tenth of a second."""
    byte_tokenizer(None).backend.save(str(tmp_path / "tokenizer.json"))
    tokenizer = Tokenizer.load(tmp_path)
    del tokenizer.backend
    assert len(tokenizer.digest) == 12
