"""Text to token ids and back, on the `tokenizers` library alone: no torch, no transformers.

Detokenising costs O(1) per token. Each token appends a fixed piece of bytes, found once; a stream runs the
pieces through an incremental UTF-8 decoder, so a character appears when it is complete.
"""

import codecs
import functools
import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Self

import msgspec
import tokenizers

from router.text.added_tokens import digest_of, read_backend
from router.text.chat_template import ChatTemplate, ChatTemplateError
from router.text.rendering import renderer
from router.text.tokenizer_files import TokenizerUnreadable
from router.tools.call_format import MARKS, CallFormat, format_of
from router.tools.grammar import SpecialTokens
from shard.messages import TokenOutput

_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")
_MAX_CHARACTER_TOKENS = 4  # a character has at most four bytes, and a token at least one
_PROBE = [{"role": "user", "content": "Hi"}]
_PROBE_TOOL = {
    "type": "function",
    "function": {
        "name": "look_up",
        "description": "Look up a word.",
        "parameters": {"type": "object", "properties": {"word": {"type": "string", "description": "It."}}},
    },
}
_utf8_decoder = codecs.getincrementaldecoder("utf-8")


class Piece(msgspec.Struct, frozen=True, gc=False):
    """The bytes that a token appends. `text` is the piece alone, with U+FFFD for incomplete characters."""

    raw: bytes
    text: str
    special: bool
    is_whole: bool = False  # begins and ends with a character


_NO_PIECE = Piece(b"", "", False)


class GeneratedToken(msgspec.Struct, frozen=True, gc=False):
    """One generated token as a client sees it. `text` is empty while a character is incomplete."""

    id: int
    text: str
    logprob: float
    special: bool
    exit_layer: int
    confidence: float | None


class Token(GeneratedToken, frozen=True, gc=False):
    """With its piece and its alternatives', since one answer's tokens may be of two tokenizers."""

    top: Sequence[tuple[int, Piece, float]] = ()  # (id, alone, logprob), best first
    alone: Piece = _NO_PIECE


class Span(msgspec.Struct, frozen=True):
    """A token of an encoded text, for the characters `start:stop`."""

    id: int
    text: str
    start: int
    stop: int


class Tokenizer:
    """The tokenizer and the chat template of one model."""

    def __init__(
        self,
        backend: tokenizers.Tokenizer,
        chat_template: ChatTemplate | None = None,
        digest: str | None = None,
    ):
        self.chat_template = chat_template
        self.backend = backend
        self._digest = digest
        self._pieces: dict[int, Piece] = {}
        self._special_ids = {id for id, token in backend.get_added_tokens_decoder().items() if token.special}
        decoder_types = _decoder_types(backend)
        self._is_byte_level = "ByteLevel" in decoder_types
        self._has_byte_fallback = "ByteFallback" in decoder_types
        self._anchor = backend.encode("a", add_special_tokens=False).ids[-1:]

    @classmethod
    def load(cls, folder: str | Path, config_path: str | Path | None = None) -> Self:
        """Read a model folder's chat template and tokenizer, with tokens named beside tokenizer.json.

        `config_path` names another tokenizer_config.json to take the chat template from. Raises OSError with
        a sentence for a file that is missing or cannot be read.
        """
        backend = read_backend(Path(folder))
        backend.no_truncation()
        backend.no_padding()
        template = ChatTemplate.load(Path(folder), Path(config_path) if config_path else None)
        if template is not None:
            _check(template)
        return cls(backend, template, digest_of(backend, Path(folder)))

    @property
    def digest(self) -> str:
        """Digest of all that decides a text's ids: with equal digests, ids mean the same.

        Computed when the folder is read: serialising a tokenizer later would block all streams for 0.1 s.
        """
        if self._digest is None:
            self._digest = hashlib.sha256(self.backend.to_str().encode()).hexdigest()[:12]
        return self._digest

    @property
    def template_source(self) -> str | None:
        return None if self.chat_template is None else self.chat_template.source

    @functools.cached_property
    def call_format(self) -> CallFormat | None:
        """The format of calls that the chat template teaches. None: none of those known here.

        Renders twice on first use: a template that writes the same with a tool and without knows no tools.
        """
        found = format_of(self.template_source or "")
        return found if found is not None and self._tells_of_tools() else None

    def _tells_of_tools(self) -> bool:
        try:
            with_tool = self.apply_chat_template(_PROBE, tools=[_PROBE_TOOL])
            return with_tool != self.apply_chat_template(_PROBE)
        except ChatTemplateError:
            return False

    @functools.cached_property
    def special_tokens(self) -> SpecialTokens:
        """Special tokens as llguidance counts them: also added tokens in angle brackets."""
        added = self.backend.get_added_tokens_decoder().items()
        taken = {token.content: id for id, token in added if token.special or _is_bracketed(token.content)}
        return SpecialTokens(taken, sorted(id for id in taken.values() if id not in self._special_ids))

    @property
    def vocab_size(self) -> int:
        return self.backend.get_vocab_size(with_added_tokens=True)

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """Token ids of a text. Safe on any thread; other threads run meanwhile."""
        # encode() would hold the interpreter lock for the whole text; the batch form lets it go
        return self.backend.encode_batch_fast([text], add_special_tokens=add_special_tokens)[0].ids

    def encode_spans(self, text: str, add_special_tokens: bool = True) -> Iterator[Span]:
        """Like `encode`, with each token's span. Special tokens that encoding added span no characters.

        Yields one at a time: those of a long text together would take a hundred times its memory.
        """
        encoding = self.backend.encode_batch([text], add_special_tokens=add_special_tokens)[0]
        for index, id in enumerate(encoding.ids):
            start, stop = encoding.token_to_chars(index) or (0, 0)
            yield Span(id, text[start:stop] or self.piece(id).text, start, stop)

    def decode(self, ids: list[int], skip_special_tokens: bool = True) -> str:
        return self.backend.decode(ids, skip_special_tokens=skip_special_tokens)

    def apply_chat_template(self, messages: list[dict[str, Any]], **options: Any) -> str:
        """The prompt text of a conversation, as `ChatTemplate.render`. Raises ChatTemplateError."""
        if self.chat_template is None:
            raise ChatTemplateError("this model has no chat template; use /generate or /v1/completions")
        return renderer().render(self.chat_template, messages=messages, **options)

    def detokenizer(self, prompt_token_ids: list[int]) -> "Detokenizer":
        """A detokenizer of text that continues the prompt, also in the middle of a character."""
        return Detokenizer(self, prompt_token_ids)

    def piece(self, id: int) -> Piece:
        """The piece that a token appends; empty for ids outside the vocabulary."""
        piece = self._pieces.get(id)
        if piece is None:
            piece = self._pieces[id] = self._find_piece(id)
        return piece

    def _find_piece(self, id: int) -> Piece:
        raw = self._find_bytes(id)
        text = raw.decode("utf-8", "replace")
        return Piece(raw, text, id in self._special_ids, text.encode() == raw)

    def _find_bytes(self, id: int) -> bytes:
        content = self.backend.id_to_token(id)
        if content is None:
            return b""
        if self._is_byte_level:
            return _unmap_bytes(content)
        if self._has_byte_fallback and (match := _BYTE_TOKEN.fullmatch(content)):
            return bytes.fromhex(match[1])
        # Decoders treat the first token of a text in their own way (a leading space goes): decode it second.
        before = self.decode(self._anchor, skip_special_tokens=False)
        both = self.decode([*self._anchor, id], skip_special_tokens=False)
        return both[len(before) :].encode()


class Detokenizer:
    """The text of one answer as it grows."""

    def __init__(self, tokenizer: Tokenizer, prompt_token_ids: list[int]):
        self._tokenizer = tokenizer
        self._utf8 = _utf8_decoder("replace")
        self._texts: list[str] = []  # of tokens that are not special
        self._marks: list[tuple[int, str]] = []  # special tokens of calls, and before which text they stand
        self._unsearched: list[str] = []
        self._searched_tail = ""
        for id in prompt_token_ids[-_MAX_CHARACTER_TOKENS:]:
            self._utf8.decode(tokenizer.piece(id).raw)
        self._is_amid = self._utf8.getstate()[0] != b""  # a character is not complete

    def push(self, output: TokenOutput) -> Token:
        """Append a token. Its text is what it completes, possibly empty."""
        piece = self._tokenizer.piece(output.id)
        # A special token is no part of the text: a character may even go on behind it.
        text = piece.text if piece.special else self._text_of(piece)
        if text:
            self._unsearched.append(text)
            if not piece.special:
                self._texts.append(text)
            elif text in MARKS:
                self._marks.append((len(self._texts), text))
        top = self._top_of(output) if output.top else ()
        return Token(
            output.id, text, output.logprob, piece.special, output.exit_layer, output.confidence, top, piece
        )

    def _top_of(self, output: TokenOutput) -> list[tuple[int, Piece, float]]:
        return [(id, self._tokenizer.piece(id), logprob) for id, logprob in output.top]

    def _text_of(self, piece: Piece) -> str:
        if piece.is_whole and not self._is_amid:
            return piece.text
        text = self._utf8.decode(piece.raw)
        self._is_amid = self._utf8.getstate()[0] != b""
        return text

    def switch(self, tokenizer: Tokenizer) -> None:
        """Continue `whole_text` with another tokenizer's tokens; an incomplete character is dropped."""
        self._tokenizer = tokenizer
        self._utf8.reset()
        self._is_amid = False

    def find_stop(self, stops: tuple[str, ...]) -> str | None:
        """The stop string that the latest tokens completed; of several, the one that begins first.

        Looks only where it has not looked before. Special tokens count as their text here, so that a client
        may name an end token as its stop.
        """
        if not stops or not self._unsearched:
            return None
        window = self._searched_tail + "".join(self._unsearched)
        self._unsearched.clear()
        keep = max(map(len, stops)) - 1
        self._searched_tail = window[-keep:] if keep else ""
        found = [(at, stop) for stop in stops if (at := window.find(stop)) >= 0]
        return min(found)[1] if found else None

    @property
    def whole_text(self) -> str:
        """The answer so far, up to its last complete character, without special tokens."""
        return "".join(self._texts)

    @property
    def marked_text(self) -> str:
        """`whole_text`, with marks of tool calls that are special tokens: for another tokenizer to encode."""
        parts, done = [], 0
        for at, mark in self._marks:
            parts += [*self._texts[done:at], mark]
            done = at
        return "".join([*parts, *self._texts[done:]])

    @property
    def text(self) -> str:
        """The answer so far, without special tokens. A character left incomplete shows as U+FFFD."""
        pending, _ = self._utf8.getstate()
        return self.whole_text + pending.decode("utf-8", "replace")


def _check(template: ChatTemplate) -> None:
    """Raises `TokenizerUnreadable` for a template that does not compile."""
    try:
        renderer().check(template)
    except ChatTemplateError as error:
        raise TokenizerUnreadable(f"{template.origin}: {error}") from None


def _decoder_types(backend: tokenizers.Tokenizer) -> set[str]:
    """Type names of the decoders in use, including those inside a sequence."""
    decoder = json.loads(backend.decoder.__getstate__()) if backend.decoder else {}
    return {part["type"] for part in (decoder, *decoder.get("decoders", [])) if "type" in part}


def _is_bracketed(content: str) -> bool:
    return content.startswith("<") and content.endswith(">")


def _byte_characters() -> dict[str, int]:
    """GPT-2's printable alphabet for bytes: those without a glyph take characters from 256 up."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + n): byte for n, byte in enumerate(others)}


_BYTE_OF = _byte_characters()


def _unmap_bytes(content: str) -> bytes:
    """The bytes of a byte-level token; an added token outside that alphabet stands for itself."""
    try:
        return bytes([_BYTE_OF[character] for character in content])
    except KeyError:
        return content.encode()
