"""OpenAI's `/v1/responses`, stateless: the client sends the whole conversation."""

import asyncio
import time
from collections.abc import Iterable
from functools import partial

import msgspec
from aiohttp import web

from router.api.arrival import ARRIVED
from router.api.constraint_structs import Text
from router.api.decode import read_body
from router.api.fields import RESPONSES, decode_call
from router.api.headers import start_headers, total_headers
from router.api.openai import OpenAIApi
from router.api.openai_responses import usage_of
from router.api.openai_tools import AnswerReader
from router.api.respond import json_response
from router.api.responses_answers import Output
from router.api.responses_requests import chat_of, naming
from router.api.responses_structs import (
    Completed,
    Created,
    Failed,
    Incomplete,
    IncompleteDetails,
    InProgress,
    InputTokensDetails,
    Response,
    ResponseEvent,
    ResponseFailure,
    ResponsesRequest,
    ResponseUsage,
    TextOptions,
)
from router.api.service import Service, answers_of
from router.scheduling.request import Finished, GenerationFailed, Request, Spec
from router.text.tokenizer import Token
from shard.messages import FinishReason

_encode = msgspec.json.Encoder().encode


class ResponsesApi:
    """The handler of `/v1/responses`."""

    def __init__(self, service: Service, openai: OpenAIApi):
        self._service = service
        self._openai = openai

    async def respond(self, http: web.Request) -> web.StreamResponse:
        asked = decode_call(await read_body(http), RESPONSES, ResponsesRequest)
        self._service.check_model(asked.model)
        with naming():
            _, specs = await self._openai.chat_specs(http, chat_of(asked))
        return await self._run(http, asked, specs)

    async def _run(self, http: web.Request, asked: ResponsesRequest, specs: list[Spec]) -> web.StreamResponse:
        with self._service.running(http, specs) as requests:
            if asked.stream:
                opening = partial(self._open, asked, requests[0])
                return await self._service.streams.answer(http, requests, opening)
            answers = await answers_of(requests)
        [answer], [request] = answers, requests
        headers = start_headers(self._service, request)
        headers |= total_headers(answers, http[ARRIVED], asyncio.get_running_loop().time())
        builder = ResponseBuilder(self._begun(asked, request), request)
        for _ in builder.events([*answer.tokens, answer.finished]):
            pass
        return json_response(builder.response, headers)

    def _open(self, asked: ResponsesRequest, request: Request) -> tuple["ResponseEvents", dict[str, str]]:
        events = ResponseEvents(ResponseBuilder(self._begun(asked, request), request))
        return events, start_headers(self._service, request)

    def _begun(self, asked: ResponsesRequest, request: Request) -> Response:
        """The response before its first item."""
        return Response(
            id=f"resp_{self._service.started_at:x}_{request.id}",
            created_at=int(time.time()),
            status="in_progress",
            model=self._service.model,
            instructions=asked.instructions,
            max_output_tokens=asked.max_output_tokens,
            temperature=1.0 if asked.temperature is None else asked.temperature,
            top_p=1.0 if asked.top_p is None else asked.top_p,
            text=TextOptions(Text()) if asked.text is None else asked.text,
            tools=asked.tools or [],
            tool_choice=asked.tool_choice or "auto",
            parallel_tool_calls=asked.parallel_tool_calls is not False,
        )


class ResponseBuilder:
    """Builds a response from an answer's tokens, and the events that stream it."""

    def __init__(self, begun: Response, request: Request):
        self.response = begun
        self._request = request
        self._reader = AnswerReader(request)
        self._output = Output()
        self._has_begun = False

    def events(self, news: list[Token | Finished]) -> Iterable[ResponseEvent]:
        """The events of the next tokens or of the end."""
        yield from self._begin()
        *others, last = news
        if isinstance(last, Finished):
            others = others[:-1]  # of the last token, `Finished` has the text
            yield from self._push(others)
            yield from self._finish(last)
        else:
            yield from self._push(news)

    def failure(self, error: GenerationFailed) -> Iterable[ResponseEvent]:
        yield from self._begin()
        failed = ResponseFailure("server_error", str(error))
        self._change(status="failed", error=failed, output=self._output.items)
        yield Failed(sequence_number=self._output.next_number(), response=self.response)

    def _begin(self) -> Iterable[ResponseEvent]:
        if not self._has_begun:
            self._has_begun = True
            yield Created(sequence_number=self._output.next_number(), response=self.response)
            yield InProgress(sequence_number=self._output.next_number(), response=self.response)

    def _push(self, tokens: Iterable[Token | Finished]) -> Iterable[ResponseEvent]:
        for token in tokens:
            assert isinstance(token, Token)
            yield from self._output.take(self._reader.push(token))

    def _finish(self, finished: Finished) -> Iterable[ResponseEvent]:
        is_cut = finished.reason is FinishReason.LENGTH
        yield from self._output.take(self._reader.finish(finished))
        yield from self._output.close("incomplete" if is_cut else "completed")
        usage = usage_of([self._request], 1)
        self._change(
            status="incomplete" if is_cut else "completed",
            output=self._output.items,
            usage=ResponseUsage(
                usage.prompt_tokens,
                usage.completion_tokens,
                usage.total_tokens,
                InputTokensDetails(usage.prompt_tokens_details.cached_tokens),
            ),
            incomplete_details=IncompleteDetails() if is_cut else None,
        )
        last = Incomplete if is_cut else Completed
        yield last(sequence_number=self._output.next_number(), response=self.response)

    def _change(self, **fields: object) -> None:
        self.response = msgspec.structs.replace(self.response, **fields)


class ResponseEvents:
    """The stream of one response."""

    def __init__(self, builder: ResponseBuilder):
        self._builder = builder

    def events(self, index: int, news: list[Token | Finished]) -> bytes:
        return _written(self._builder.events(news))

    def end(self) -> bytes:
        return b""

    def failure(self, error: GenerationFailed) -> bytes:
        return _written(self._builder.failure(error))


def _written(events: Iterable[ResponseEvent]) -> bytes:
    return b"".join(
        [b"event: %b\ndata: %b\n\n" % (_type(event).encode(), _encode(event)) for event in events]
    )


def _type(event: ResponseEvent) -> str:
    tag = type(event).__struct_config__.tag
    assert isinstance(tag, str)
    return tag
