"""Generations in OpenAI's two shapes: chat messages with their deltas, and completions."""

from typing import Literal, Protocol

import msgspec

from router.api.openai_logprobs import chat_logprobs, completion_logprobs, joined, prompt_logprobs
from router.api.openai_structs import (
    ChatChoice,
    ChatChunk,
    ChatChunkChoice,
    ChatCompletion,
    ChatDelta,
    ChatLogprobs,
    ChatMessage,
    Completion,
    CompletionChoice,
    CompletionLogprobs,
    PromptTokensDetails,
    ToolCallDelta,
    Usage,
)
from router.api.openai_tools import read
from router.api.service import Answer
from router.scheduling.request import Request
from router.text.tokenizer import Token


class Head(msgspec.Struct, frozen=True):
    """The fields that every chunk of an answer repeats."""

    id: str
    created: int
    model: str
    system_fingerprint: str


class Part(msgspec.Struct, frozen=True):
    """One event of a choice: newly visible text, and the token it came with."""

    index: int
    is_first: bool  # of its choice
    text: str
    calls: list[ToolCallDelta]  # pieces of calls, which came with it
    token: Token | None
    offset: int  # where in the choice's text the token begins
    finish_reason: str | None = None
    may_be_silent: bool = False  # a token within a call may tell nothing

    @property
    def is_silent(self) -> bool:
        tells = self.is_first or self.text or self.calls or self.finish_reason
        return self.may_be_silent and not tells


class Shape(Protocol):
    """A response format: chat messages or completions."""

    id_prefix: str
    wants_logprobs: bool

    def whole(self, head: Head, answers: list[Answer], usage: Usage) -> msgspec.Struct: ...

    def chunk(self, head: Head, part: Part) -> msgspec.Struct | None:
        """The event of a part, if there is anything to tell."""

    def prompt_text(self, index: int) -> str:
        """The text before the answer in the choice's text."""

    def prompt_chunk(self, head: Head, index: int, request: Request) -> msgspec.Struct | None:
        """The event before the first token, if the prompt is to be shown."""

    def usage_chunk(self, head: Head, usage: Usage) -> msgspec.Struct: ...


def usage_of(requests: list[Request], per_prompt: int) -> Usage:
    """Token counts of all `requests`. Each prompt, shared by `per_prompt` adjacent answers, counts once."""
    num_prompt_tokens = sum(request.num_prompt_tokens for request in requests[::per_prompt])
    num_generated = sum(len(request.outputs) for request in requests)
    num_cached = sum(request.num_cached_tokens for request in requests[::per_prompt])
    details = PromptTokensDetails(num_cached)
    return Usage(num_prompt_tokens, num_generated, num_prompt_tokens + num_generated, details)


class ChatShape:
    """Messages, streamed as deltas."""

    id_prefix = "chatcmpl"

    def __init__(self, wants_logprobs: bool):
        self.wants_logprobs = wants_logprobs

    def whole(self, head: Head, answers: list[Answer], usage: Usage) -> ChatCompletion:
        choices = [self._choice(index, answer) for index, answer in enumerate(answers)]
        return ChatCompletion(**msgspec.structs.asdict(head), choices=choices, usage=usage)

    def chunk(self, head: Head, part: Part) -> ChatChunk | None:
        if part.is_silent and not self.wants_logprobs:
            return None
        choice = ChatChunkChoice(
            part.index,
            _delta(part),
            part.finish_reason,
            None if part.token is None else self._logprobs([part.token]),
        )
        return ChatChunk(head.id, head.created, head.model, head.system_fingerprint, [choice])

    def prompt_text(self, index: int) -> str:
        return ""

    def prompt_chunk(self, head: Head, index: int, request: Request) -> None:
        return None

    def usage_chunk(self, head: Head, usage: Usage) -> ChatChunk:
        return ChatChunk(head.id, head.created, head.model, head.system_fingerprint, [], usage)

    def _choice(self, index: int, answer: Answer) -> ChatChoice:
        text, calls, reason = read(answer)
        content = None if calls and not text else text
        message = ChatMessage("assistant", content, calls or msgspec.UNSET)
        return ChatChoice(index, message, reason, self._logprobs(answer.tokens))

    def _logprobs(self, tokens: list[Token]) -> ChatLogprobs | None:
        return chat_logprobs(tokens) if self.wants_logprobs else None


def _delta(part: Part) -> ChatDelta:
    """Where calls may be made, a delta without text has no content; the first one has null."""
    content: str | msgspec.UnsetType | None = part.text
    if part.may_be_silent and not part.text:
        content = None if part.is_first else msgspec.UNSET
    role: Literal["assistant"] | msgspec.UnsetType = "assistant" if part.is_first else msgspec.UNSET
    return ChatDelta(content, role, part.calls or msgspec.UNSET)


class CompletionShape:
    """Text that continues the prompt. `echoed` holds each choice's prompt if its text is to begin with it."""

    id_prefix = "cmpl"

    def __init__(self, wants_logprobs: bool, echoed: list[str] | None):
        self.wants_logprobs = wants_logprobs
        self._echoed = echoed

    def whole(self, head: Head, answers: list[Answer], usage: Usage) -> Completion:
        choices = [self._choice(index, answer) for index, answer in enumerate(answers)]
        return Completion(**msgspec.structs.asdict(head), choices=choices, usage=usage)

    def chunk(self, head: Head, part: Part) -> Completion:
        tokens = [] if part.token is None else [part.token]
        logprobs = self._logprobs(tokens, part.offset) if tokens else None
        return self._event(head, CompletionChoice(part.index, part.text, part.finish_reason, logprobs))

    def prompt_text(self, index: int) -> str:
        return self._echoed[index] if self._echoed else ""

    def prompt_chunk(self, head: Head, index: int, request: Request) -> Completion | None:
        if self._echoed is None:
            return None
        logprobs = prompt_logprobs(request) if self.wants_logprobs else None
        return self._event(head, CompletionChoice(index, self._echoed[index], None, logprobs))

    def usage_chunk(self, head: Head, usage: Usage) -> Completion:
        return Completion(head.id, head.created, head.model, head.system_fingerprint, [], usage)

    def _event(self, head: Head, choice: CompletionChoice) -> Completion:
        return Completion(head.id, head.created, head.model, head.system_fingerprint, [choice])

    def _choice(self, index: int, answer: Answer) -> CompletionChoice:
        prompt = self.prompt_text(index)
        logprobs = self._logprobs(answer.tokens, len(prompt))
        if logprobs is not None and self._echoed is not None:
            logprobs = joined(prompt_logprobs(answer.request), logprobs)
        text, _, reason = read(answer)
        return CompletionChoice(index, prompt + text, reason, logprobs)

    def _logprobs(self, tokens: list[Token], offset: int) -> CompletionLogprobs | None:
        return completion_logprobs(tokens, offset) if self.wants_logprobs else None
