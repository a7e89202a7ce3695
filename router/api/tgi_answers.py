"""A generation in TGI's formats: the whole answer, or the events of a stream."""

from typing import Literal, NamedTuple

import msgspec

from router.api.errors import error_body
from router.api.service import Answer, Service
from router.api.tgi_structs import (
    BestOfSequence,
    Details,
    GenerateResponse,
    Parameters,
    PrefillToken,
    StreamDetails,
    StreamEvent,
    TopToken,
)
from router.scheduling.request import Finished, GenerationFailed, Request
from router.text.tokenizer import GeneratedToken, Token

TopTokens = list[list[TopToken]] | msgspec.UnsetType

_encode = msgspec.json.Encoder().encode
# TGI's last event must have a token: this one if an answer ends without.
_NO_TOKEN = Token(0, "", 0.0, True, 0, None)


def response(service: Service, inputs: str, asked: Parameters, answers: list[Answer]) -> GenerateResponse:
    """TGI's response: the first answer, with the others in its details (`best_of`)."""
    prefix = inputs if asked.return_full_text else ""
    text = prefix + answers[0].finished.text
    if not (asked.details or asked.decoder_input_details):
        return GenerateResponse(text)
    return GenerateResponse(text, _details(service, answers, prefix))


def _details(service: Service, answers: list[Answer], prefix: str) -> Details:
    best, *others = answers
    request = best.request
    return Details(
        finish_reason=best.finished.reason,
        generated_tokens=len(best.tokens),
        seed=_seed(request),
        cached_tokens=request.num_cached_tokens,
        prefill=_prefill(request),
        tokens=[_token(token) for token in best.tokens],
        top_tokens=_top_tokens(best),
        best_of_sequences=[_sequence(other, prefix) for other in others] or msgspec.UNSET,
        mean_exit_layer=request.mean_exit_layer,
        segments=request.segments,
        exit_replay=_mark(service, "exit-replay"),
        random_weights=_mark(service, "random-weights"),
    )


def _sequence(answer: Answer, prefix: str) -> BestOfSequence:
    return BestOfSequence(
        generated_text=prefix + answer.finished.text,
        finish_reason=answer.finished.reason,
        generated_tokens=len(answer.tokens),
        seed=_seed(answer.request),
        prefill=_prefill(answer.request),
        tokens=[_token(token) for token in answer.tokens],
        top_tokens=_top_tokens(answer),
    )


def _seed(request: Request) -> int | None:
    """The seed that reproduces this answer; None if greedy."""
    sampling = request.spec.sampling
    return sampling.seed if sampling.temperature > 0 else None


def _prefill(request: Request) -> list[PrefillToken]:
    if not request.spec.sampling.prompt_logprobs:
        return []
    logprobs = [None, *(score.logprob for score in request.prompt_scores)]
    return [
        PrefillToken(id, request.tokenizer.piece(id).text, logprob)
        for id, logprob in zip(request.prompt_token_ids, logprobs, strict=False)
    ]


def _token(token: Token, text: str | None = None) -> GeneratedToken:
    return GeneratedToken(
        token.id,
        token.text if text is None else text,
        token.logprob,
        token.special,
        token.exit_layer,
        token.confidence,
    )


def _top(token: Token) -> list[TopToken]:
    return [TopToken(id, alone.text, logprob, alone.special) for id, alone, logprob in token.top]


def _top_tokens(answer: Answer) -> TopTokens:
    if not answer.request.spec.sampling.num_top_tokens:
        return msgspec.UNSET
    return [_top(token) for token in answer.tokens]


def _mark(service: Service, mark: str) -> Literal[True] | msgspec.UnsetType:
    return True if mark in service.config.marks else msgspec.UNSET


class StreamOptions(NamedTuple):
    prefix: str  # put before the whole text of the last event
    wants_details: bool


class TgiEvents:
    """One stream of TGI's events; the last token's carries the whole text."""

    def __init__(self, service: Service, request: Request, options: StreamOptions):
        self._service = service
        self._request = request
        self._options = options
        self._num_tokens = 0
        self._num_characters = 0
        self._has_top = request.spec.sampling.num_top_tokens > 0

    def events(self, index: int, news: list[Token | Finished]) -> bytes:
        """`index` is always 0: these streams have one request."""
        last = news[-1]
        if isinstance(last, Token):
            return self._event(last) if len(news) == 1 else self._events(news)
        final = news[-2] if len(news) > 1 else _NO_TOKEN
        assert isinstance(final, Token)
        return self._events(news[:-2]) + self._last_event(final, last)

    def end(self) -> bytes:
        return b""

    def failure(self, error: GenerationFailed) -> bytes:
        return b"data: " + error_body(error, openai=False) + b"\n\n"

    def _events(self, tokens: list[Token | Finished]) -> bytes:
        return b"".join([self._event(token) for token in tokens if isinstance(token, Token)])

    def _event(self, token: Token) -> bytes:
        if not token.special:
            self._num_characters += len(token.text)
        return self._write(token, _token(token))

    def _last_event(self, token: Token, finished: Finished) -> bytes:
        # What an unfinished character leaves shows in the whole text, so it must show in the pieces too.
        text = token.text if token.special else finished.text[self._num_characters :]
        return self._write(token, _token(token, text), finished)

    def _write(self, token: Token, shown: GeneratedToken, finished: Finished | None = None) -> bytes:
        self._num_tokens += 1
        event = StreamEvent(
            self._num_tokens,
            shown,
            _top(token) if self._has_top else msgspec.UNSET,
            None if finished is None else self._options.prefix + finished.text,
            None if finished is None else self._details(finished),
        )
        return b"data: " + _encode(event) + b"\n\n"

    def _details(self, finished: Finished) -> StreamDetails | None:
        if not self._options.wants_details:
            return None
        request = self._request
        return StreamDetails(
            finish_reason=finished.reason,
            generated_tokens=len(request.outputs),
            seed=_seed(request),
            input_length=request.num_prompt_tokens,
            cached_tokens=request.num_cached_tokens,
            mean_exit_layer=request.mean_exit_layer,
            segments=request.segments,
            exit_replay=_mark(self._service, "exit-replay"),
            random_weights=_mark(self._service, "random-weights"),
        )
