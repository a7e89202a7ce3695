"""A stream of OpenAI's chunks for one or several interleaved choices."""

from collections.abc import Callable

import msgspec

from router.api.errors import error_body
from router.api.openai_responses import Head, Part, Shape
from router.api.openai_structs import Usage
from router.api.openai_tools import AnswerReader, Passage
from router.scheduling.request import Finished, GenerationFailed, Request
from router.text.tokenizer import Token

_encode = msgspec.json.Encoder().encode
_ANY_TEXT = "\0"


class Progress:
    """How far one choice has come."""

    def __init__(self, request: Request, prompt_text: str):
        self.reader = AnswerReader(request)
        self.offset = len(prompt_text)  # of the next token in the choice's text
        self.has_begun = False
        self.around: tuple[bytes, bytes] | None = None  # the bytes around the text of its next chunks
        self._num_parts = 0

    def part(
        self, index: int, passage: Passage, token: Token | None, finish_reason: str | None = None
    ) -> Part:
        """The next part of the choice with this index."""
        self._num_parts += 1
        is_first = self._num_parts == 1
        may_be_silent = self.reader.expects_calls
        return Part(
            index, is_first, passage.text, passage.calls, token, self.offset, finish_reason, may_be_silent
        )


class OpenAIEvents:
    """Chunks of all choices, then the usage if `count_usage` is given, then `[DONE]`."""

    def __init__(
        self,
        head: Head,
        shape: Shape,
        requests: list[Request],
        count_usage: Callable[[], Usage] | None = None,
    ):
        self._head = head
        self._shape = shape
        self._requests = requests
        self._count_usage = count_usage
        self._progress = [
            Progress(request, shape.prompt_text(index)) for index, request in enumerate(requests)
        ]

    def events(self, index: int, news: list[Token | Finished]) -> bytes:
        written = [] if self._progress[index].has_begun else [self._begin(index)]
        last = news[-1]
        if isinstance(last, Finished):
            final = news[-2] if len(news) > 1 else None
            assert not isinstance(final, Finished)
            written += self._tokens(index, news[:-2])
            written.append(self._last(index, final, last))
        else:
            written += self._tokens(index, news)
        return b"".join(written)

    def end(self) -> bytes:
        if self._count_usage is None:
            return b"data: [DONE]\n\n"
        usage = self._shape.usage_chunk(self._head, self._count_usage())
        return b"data: %b\n\ndata: [DONE]\n\n" % _encode(usage)

    def failure(self, error: GenerationFailed) -> bytes:
        return b"data: %b\n\n" % error_body(error, openai=True)

    def _begin(self, index: int) -> bytes:
        """The chunk that echoes the prompt before the first token, if asked for."""
        self._progress[index].has_begun = True
        return _written(self._shape.prompt_chunk(self._head, index, self._requests[index]))

    def _tokens(self, index: int, tokens: list[Token | Finished]) -> list[bytes]:
        return [self._token(index, token) for token in tokens if isinstance(token, Token)]

    def _token(self, index: int, token: Token) -> bytes:
        progress = self._progress[index]
        passage = progress.reader.push(token)
        if progress.around is not None:
            before, after = progress.around
            return before + _encode(passage.text) + after
        data = _written(self._shape.chunk(self._head, progress.part(index, passage, token)))
        progress.around = self._around(index)
        if not token.special:
            progress.offset += len(token.text)
        return data

    def _around(self, index: int) -> tuple[bytes, bytes] | None:
        """What stands around the text in every chunk from the second on; None if more varies than that."""
        if self._shape.wants_logprobs or self._progress[index].reader.expects_calls:
            return None
        part = Part(index, False, _ANY_TEXT, [], None, 0)
        before, _, after = _written(self._shape.chunk(self._head, part)).rpartition(_encode(_ANY_TEXT))
        return before, after

    def _last(self, index: int, token: Token | None, finished: Finished) -> bytes:
        progress = self._progress[index]
        passage = progress.reader.finish(finished)
        reason = progress.reader.reason_of(finished)
        return _written(self._shape.chunk(self._head, progress.part(index, passage, token, reason)))


def _written(chunk: msgspec.Struct | None) -> bytes:
    return b"" if chunk is None else b"data: %b\n\n" % _encode(chunk)
