"""TGI's generation routes: `/`, `/generate` and `/generate_stream`."""

import asyncio

import msgspec
from aiohttp import web

from router.api import validation
from router.api.arrival import ARRIVED
from router.api.constraints import of_parameters
from router.api.decode import read_body
from router.api.errors import Invalid
from router.api.fields import TGI, decode_call
from router.api.headers import label_of, start_headers, total_headers
from router.api.respond import json_response
from router.api.service import Service, answers_of
from router.api.tgi_answers import StreamOptions, TgiEvents, response
from router.api.tgi_structs import CompatRequest, GenerateRequest, GenerateResponse, Parameters
from router.scheduling.request import Spec
from router.text.prompt import Prompt


class TgiApi:
    """Handlers of TGI's generation routes."""

    def __init__(self, service: Service):
        self._service = service

    async def compat(self, http: web.Request) -> web.StreamResponse:
        """`POST /`: a list of one answer, or a stream if the body asks for one."""
        return await self.compat_body(http, await read_body(http))

    async def compat_body(self, http: web.Request, body: bytes) -> web.StreamResponse:
        asked = decode_call(body, TGI, CompatRequest)
        request = GenerateRequest(asked.inputs, asked.parameters)
        if asked.stream:
            return await self._stream(http, request)
        headers, answer = await self._answer(http, request)
        return json_response([answer], headers)

    async def generate(self, http: web.Request) -> web.StreamResponse:
        headers, answer = await self._answer(http, decode_call(await read_body(http), TGI, GenerateRequest))
        return json_response(answer, headers)

    async def generate_stream(self, http: web.Request) -> web.StreamResponse:
        return await self._stream(http, decode_call(await read_body(http), TGI, GenerateRequest))

    async def _answer(
        self, http: web.Request, request: GenerateRequest
    ) -> tuple[dict[str, str], GenerateResponse]:
        asked = request.parameters or Parameters()
        spec = await self._spec(http, request.inputs, asked)
        specs = [validation.with_seed(spec, asked, index) for index in range(asked.best_of or 1)]
        with self._service.running(http, specs) as running:
            answers = await answers_of(running)
            headers = start_headers(self._service, running[0])
        answers.sort(key=lambda answer: answer.mean_logprob, reverse=True)
        headers |= total_headers(answers, http[ARRIVED], asyncio.get_running_loop().time())
        return headers, response(self._service, request.inputs, asked, answers)

    async def _stream(self, http: web.Request, request: GenerateRequest) -> web.StreamResponse:
        asked = request.parameters or Parameters()
        if (asked.best_of or 1) > 1:
            raise Invalid("best_of", "> 1 is not supported when streaming")
        if asked.decoder_input_details:
            raise Invalid("decoder_input_details", "is not supported when streaming")
        options = StreamOptions(request.inputs if asked.return_full_text else "", bool(asked.details))
        spec = await self._spec(http, request.inputs, asked)
        with self._service.running(http, [spec]) as [running]:
            events = TgiEvents(self._service, running, options)

            def opening() -> tuple[TgiEvents, dict[str, str]]:
                return events, start_headers(self._service, running)

            return await self._service.streams.answer(http, [running], opening)

    async def _spec(self, http: web.Request, inputs: str, asked: Parameters) -> Spec:
        limits = self._service.limits()
        validation.check(asked, limits)
        self._service.admit([inputs], asked.best_of or 1, limits)
        grammar = await self._service.grammar(of_parameters(asked), asked, limits)
        [encoded] = await self._service.encode([Prompt(inputs, truncate=asked.truncate)])
        spec = validation.spec_of(asked, encoded, limits, http[ARRIVED], label_of(http))
        return msgspec.structs.replace(spec, grammar=grammar)
