"""Readers that parse a stream's events into a record, one for each dialect."""

from typing import Any, Protocol

import msgspec

from loadgen.client.records import Flaw, Outcome, Record, Segment


class GarbageEvent(Exception):
    """An unparsable event."""


class Reader(Protocol):
    """Reads the events of one stream. `is_over` once an event has completed the answer."""

    is_over: bool

    def take(self, data: bytes, at: float) -> None: ...


class _TgiToken(msgspec.Struct, gc=False):
    id: int = -1
    text: str = ""
    special: bool = False  # not part of the whole text
    exit_layer: int | None = None
    confidence: float | None = None


class _TgiDetails(msgspec.Struct):
    finish_reason: str = ""
    generated_tokens: int | None = None
    input_length: int | None = None
    cached_tokens: int | None = None
    queue_ms: float | None = None
    segments: list[Segment] = []


class _TgiEvent(msgspec.Struct, gc=False):
    index: int | None = None
    token: _TgiToken | None = None
    generated_text: str | None = None
    details: _TgiDetails | None = None
    error: Any = None
    error_type: str = ""


_tgi_event = msgspec.json.Decoder(_TgiEvent)


class TgiReader:
    """Events of `/generate_stream`: one token each, the last one with the whole text."""

    def __init__(self, record: Record):
        self.is_over = False
        self._record = record
        self._next_index: int | None = None

    def take(self, data: bytes, at: float) -> None:
        try:
            event = _tgi_event.decode(data)
        except msgspec.DecodeError as error:
            raise GarbageEvent(str(error)) from None
        if event.error is not None:
            self._record.outcome = Outcome.ERROR_EVENT
            self._record.detail = f"{event.error_type}: {_told(event.error)}"
            return
        if event.token is not None:
            self._take_token(event.token, event.index, at)
        if event.generated_text is not None:
            self._take_end(event.generated_text, event.details)

    def _take_token(self, token: _TgiToken, index: int | None, at: float) -> None:
        record = self._record
        if self.is_over:
            record.add_flaw(Flaw.AFTER_END)
        if index is not None:
            self._check_index(index)
        record.add_token(at, "" if token.special else token.text)
        record.token_ids.append(token.id)
        if token.exit_layer is not None:
            record.exit_layers.append(token.exit_layer)
            record.confidences.append(float("nan") if token.confidence is None else token.confidence)

    def _check_index(self, index: int) -> None:
        """Check that indices rise by one, from any start."""
        expected = index if self._next_index is None else self._next_index
        if index < expected:
            self._record.add_flaw(Flaw.DUPLICATED)
        elif index > expected or (self._next_index is None and index > 1):
            self._record.add_flaw(Flaw.GAP)
        self._next_index = max(index, expected) + 1

    def _take_end(self, text: str, details: _TgiDetails | None) -> None:
        record = self._record
        if self.is_over:
            record.add_flaw(Flaw.DUPLICATED)
        self.is_over = True
        if details is not None:
            record.finish_reason = details.finish_reason
            record.input_tokens = details.input_length
            record.cached_tokens = details.cached_tokens
            record.output_tokens = details.generated_tokens
            record.queue_ms = details.queue_ms
            record.segments = details.segments
        if not _same_text(text, record.text):
            record.add_flaw(Flaw.TEXT_DIFFERS)
        if details is not None and details.generated_tokens not in (None, len(record.token_times)):
            record.add_flaw(Flaw.COUNT_DIFFERS)


def _same_text(whole: str, pieces: str) -> bool:
    """True if equal, apart from a special token's text at the end and blanks at the start."""
    whole, pieces = whole.strip(), pieces.strip()
    return pieces.startswith(whole) if whole else True


def _told(error: Any) -> str:
    """The message of an error in either dialect."""
    return str(error.get("message", error) if isinstance(error, dict) else error)[:300]


class _Delta(msgspec.Struct, gc=False):
    content: str | None = None
    reasoning_content: str | None = None


class _Choice(msgspec.Struct, gc=False):
    text: str | None = None
    delta: _Delta | None = None
    finish_reason: str | None = None
    exit_layer: int | None = None
    confidence: float | None = None


class _PromptDetails(msgspec.Struct, gc=False):
    cached_tokens: int | None = None


class _Usage(msgspec.Struct, gc=False):
    prompt_tokens: int = 0
    prompt_tokens_details: _PromptDetails | None = None
    completion_tokens: int | None = None


class _Chunk(msgspec.Struct, gc=False):
    id: str | None = None
    choices: list[_Choice] = []
    usage: _Usage | None = None
    error: Any = None


_chunk = msgspec.json.Decoder(_Chunk)


class OpenAIReader:
    """Chunks of `/v1/completions` and `/v1/chat/completions`. A chunk may carry several tokens."""

    def __init__(self, record: Record):
        self.is_over = False
        self._record = record
        self._id: str | None = None

    def take(self, data: bytes, at: float) -> None:
        if data.strip() == b"[DONE]":
            return
        try:
            chunk = _chunk.decode(data)
        except msgspec.DecodeError as error:
            raise GarbageEvent(str(error)) from None
        if chunk.error is not None:
            self._record.outcome = Outcome.ERROR_EVENT
            self._record.detail = _told(chunk.error)
            return
        self._check_id(chunk.id)
        for choice in chunk.choices:
            self._take_choice(choice, at)
        if chunk.usage is not None:
            self._record.input_tokens = chunk.usage.prompt_tokens
            told = chunk.usage.prompt_tokens_details
            self._record.cached_tokens = None if told is None else told.cached_tokens
            self._record.output_tokens = chunk.usage.completion_tokens

    def _check_id(self, id: str | None) -> None:
        """Check that every chunk carries the stream's own id."""
        if self._id is not None and id != self._id:
            self._record.add_flaw(Flaw.MIXED)
        self._id = self._id or id

    def _take_choice(self, choice: _Choice, at: float) -> None:
        record = self._record
        text = choice.text or (choice.delta and (choice.delta.content or choice.delta.reasoning_content))
        if text:
            if self.is_over:
                record.add_flaw(Flaw.AFTER_END)
            record.add_token(at, text)
            if choice.exit_layer is not None:
                record.exit_layers.append(choice.exit_layer)
                record.confidences.append(float("nan") if choice.confidence is None else choice.confidence)
        if choice.finish_reason:
            if self.is_over:
                record.add_flaw(Flaw.DUPLICATED)
            self.is_over = True
            record.finish_reason = choice.finish_reason
