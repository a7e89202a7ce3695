"""OpenAI's routes: `/v1/chat/completions`, `/v1/completions` and `/v1/models`."""

import asyncio
import time
from collections.abc import Sequence
from functools import partial

import msgspec
from aiohttp import web

from router.api import validation
from router.api.arrival import ARRIVED
from router.api.constraints import Refusal, Wanted, check_together
from router.api.decode import read_body
from router.api.fields import CHAT, COMPLETION, decode_call
from router.api.headers import label_of, start_headers, total_headers
from router.api.openai_messages import chat_prompt
from router.api.openai_requests import (
    CHAT_NAMES,
    COMPLETION_NAMES,
    Call,
    chat_call,
    completion_call,
    naming,
    prompts_of,
)
from router.api.openai_responses import ChatShape, CompletionShape, Head, Shape, usage_of
from router.api.openai_stream import OpenAIEvents
from router.api.openai_structs import ChatRequest, CompletionRequest, Model, Models
from router.api.openai_tools import checked
from router.api.respond import json_response
from router.api.service import Answer, Service, answers_of
from router.grammar.constraint import Reason
from router.scheduling.request import Request, Spec
from router.text.prompt import Encoded, Prompt


class OpenAIApi:
    """Handlers of OpenAI's routes."""

    def __init__(self, service: Service):
        self._service = service

    async def chat(self, http: web.Request) -> web.StreamResponse:
        return await self.chat_body(http, await read_body(http))

    async def completions(self, http: web.Request) -> web.StreamResponse:
        return await self.completion_body(http, await read_body(http))

    async def models(self, http: web.Request) -> web.Response:
        return json_response(Models(data=[self._model(name) for name in self._service.config.model_names]))

    async def model(self, http: web.Request) -> web.Response:
        """Describe one model, by any name that calls may give as `model`."""
        name = http.match_info["id"]
        self._service.check_model(name)
        return json_response(self._model(name))

    def _model(self, name: str) -> Model:
        ready = self._service.dispatcher.limits
        return Model(
            id=name,
            created=self._service.started_at,
            root=self._service.root,
            max_model_len=None if ready is None else self._service.dispatcher.max_total_tokens,
        )

    async def chat_body(self, http: web.Request, body: bytes) -> web.StreamResponse:
        asked = decode_call(body, CHAT, ChatRequest)
        self._service.check_model(asked.model)
        with naming(CHAT_NAMES):
            call, specs = await self.chat_specs(http, asked)
        shape = ChatShape(bool(asked.logprobs))
        return await self._run(http, call, shape, specs)

    async def chat_specs(self, http: web.Request, asked: ChatRequest) -> tuple[Call, list[Spec]]:
        """A chat's generations, checked and encoded. Raises `Invalid`, which names TGI's parameters."""
        call, prompt = chat_call(asked), chat_prompt(asked)
        if prompt.tools is not None:
            check_together("tools", call.parameters)
        self._admit(call, [_template_text(prompt)])
        specs = await self._specs(http, call, [await self._checked(prompt)])
        if call.wanted is not None:
            _check_beside_calls(call.wanted, specs[0].prompt)
        return call, specs

    async def completion_body(self, http: web.Request, body: bytes) -> web.StreamResponse:
        asked = decode_call(body, COMPLETION, CompletionRequest)
        self._service.check_model(asked.model)
        with naming(COMPLETION_NAMES):
            call = completion_call(asked)
            prompts = prompts_of(asked, self._service.config.max_client_batch_size)
            self._admit(call, prompts)
            adds = asked.add_special_tokens
            made = [Prompt(p, add_special_tokens=adds) if isinstance(p, str) else p for p in prompts]
            specs = await self._specs(http, call, made)
        echoed = [self._text(prompt) for prompt in prompts for _ in range(call.n)] if asked.echo else None
        shape = CompletionShape(asked.logprobs is not None, echoed)
        return await self._run(http, call, shape, specs)

    async def _checked(self, prompt: Prompt) -> Prompt:
        """The prompt with tools whose schemas are checked. Raises `Invalid`."""
        tools = prompt.tools
        if tools is None:
            return prompt
        if not self._service.limits(validation.OPENAI).can_constrain:
            problem = "cannot be called: these shards are simulated, or their model has no tokenizer.json"
            raise Refusal("tools", problem, Reason.UNABLE)
        made = await self._service.encoding.run(prompt.num_characters, lambda: checked(tools))
        return msgspec.structs.replace(prompt, tools=made)

    def _admit(self, call: Call, prompts: Sequence[str | list[int]]) -> None:
        limits = self._service.limits(validation.OPENAI)
        validation.check(call.parameters, limits)
        self._service.admit(prompts, call.per_prompt, limits)

    def _text(self, prompt: str | list[int]) -> str:
        return prompt if isinstance(prompt, str) else self._service.tokenizer.decode(prompt)

    async def _specs(
        self, http: web.Request, call: Call, prompts: Sequence[Prompt | list[int]]
    ) -> list[Spec]:
        """The specs of all generations of a call, grouped by prompt. Raises `Invalid`."""
        limits = self._service.limits(validation.OPENAI)
        grammar = await self._service.grammar(call.wanted, call.parameters, limits)
        specs = []
        for encoded in await self._encoded(prompts, limits):
            made = validation.spec_of(call.parameters, encoded, limits, http[ARRIVED], label_of(http))
            spec = msgspec.structs.replace(made, grammar=grammar)
            specs += [validation.with_seed(spec, call.parameters, index) for index in range(call.per_prompt)]
        return specs

    async def _encoded(
        self, prompts: Sequence[Prompt | list[int]], limits: validation.Limits
    ) -> list[Encoded]:
        texts = [prompt for prompt in prompts if isinstance(prompt, Prompt)]
        if texts:
            return await self._service.encode(texts)
        tokenizer = self._service.tokenizer
        given = [prompt for prompt in prompts if not isinstance(prompt, Prompt)]
        for ids in given:
            validation.check_token_ids("inputs", ids, limits.vocab_size)
        return [Encoded(ids, tokenizer) for ids in given]

    async def _run(
        self, http: web.Request, call: Call, shape: Shape, specs: list[Spec]
    ) -> web.StreamResponse:
        with self._service.running(http, specs) as requests:
            if call.wants_stream:
                opening = partial(self._open, call, shape, requests)
                return await self._service.streams.answer(http, requests, opening)
            answers = await answers_of(requests)
        head, headers = self._head(shape, requests[0]), start_headers(self._service, requests[0])
        headers |= total_headers(answers, http[ARRIVED], asyncio.get_running_loop().time())
        usage = usage_of(requests, call.per_prompt)
        return json_response(shape.whole(head, _best(answers, call), usage), headers)

    def _open(self, call: Call, shape: Shape, requests: list[Request]) -> tuple[OpenAIEvents, dict[str, str]]:
        """Format and headers of a stream."""
        count_usage = partial(usage_of, requests, call.per_prompt) if call.wants_usage else None
        events = OpenAIEvents(self._head(shape, requests[0]), shape, requests, count_usage)
        return events, start_headers(self._service, requests[0])

    def _head(self, shape: Shape, request: Request) -> Head:
        service = self._service
        version = request.segments[0].version if request.segments else service.version
        return Head(
            id=f"{shape.id_prefix}-{service.started_at:x}-{request.id}",
            created=int(time.time()),
            model=service.model,
            system_fingerprint="-".join(["helios", version, *service.config.marks]),
        )


def _check_beside_calls(wanted: Wanted, prompt: Prompt | None) -> None:
    """Refuse a constraint beside optional calls whose first character could begin either."""
    if prompt is None or prompt.tools is None or prompt.tools.must_call or prompt.call_format is None:
        return
    if prompt.call_format.begins_answer:
        problem = "and `tools` exclude each other with this model, whose calls are JSON: set `tool_choice`"
        raise Refusal(wanted.name, problem, Reason.CONFLICT)


def _template_text(prompt: Prompt) -> str:
    """About as much text as the chat template will write."""
    texts = [message["content"] for message in prompt.messages or []]
    if prompt.tools is not None:
        texts.append(msgspec.json.encode(prompt.tools.described).decode())
    return "".join(texts)


def _best(answers: list[Answer], call: Call) -> list[Answer]:
    """The `n` answers of highest mean log-probability for each prompt."""
    chosen: list[Answer] = []
    for start in range(0, len(answers), call.per_prompt):
        group = answers[start : start + call.per_prompt]
        if call.per_prompt > call.n:
            group.sort(key=lambda answer: answer.mean_logprob, reverse=True)
        chosen += group[: call.n]
    return chosen
