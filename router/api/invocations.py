"""SageMaker's one route: a TGI, chat or completion body, told apart by what it holds."""

from typing import Any

import msgspec
from aiohttp import web

from router.api.decode import decode, read_body
from router.api.errors import Invalid
from router.api.openai import OpenAIApi
from router.api.tgi import TgiApi


class Body(msgspec.Struct, frozen=True):
    """The fields that tell the three bodies apart."""

    inputs: Any = msgspec.UNSET
    messages: Any = msgspec.UNSET
    prompt: Any = msgspec.UNSET


class Invocations:
    """The handler of `/invocations`."""

    def __init__(self, tgi: TgiApi, openai: OpenAIApi):
        self._native = tgi
        self._openai = openai

    async def invoke(self, http: web.Request) -> web.StreamResponse:
        body = await read_body(http)
        fields = decode(body, Body)
        if fields.inputs is not msgspec.UNSET:
            return await self._native.compat_body(http, body)
        if fields.messages is not msgspec.UNSET:
            return await self._openai.chat_body(http, body)
        if fields.prompt is not msgspec.UNSET:
            return await self._openai.completion_body(http, body)
        raise Invalid("inputs", "is missing (or `messages`, or `prompt`)")
