"""Tokens of a text and text of tokens, in TGI's and vLLM's shapes."""

import asyncio

from aiohttp import web

from router.api import bounds
from router.api.decode import decode, read_body
from router.api.errors import Invalid
from router.api.native_structs import (
    ChatTokenized,
    DetokenizedText,
    DetokenizeRequest,
    TokenizedText,
    TokenizeRequest,
)
from router.api.openai_asked import messages_of
from router.api.openai_structs import ChatRequest
from router.api.respond import json_response
from router.api.service import Service
from router.prompt import Prompt
from router.tokenizer import Span


class TextApi:
    """Handlers that need the tokenizer and no shard."""

    def __init__(self, service: Service):
        self._service = service

    async def tokenize(self, http: web.Request) -> web.Response:
        """TGI's list of tokens for `inputs`, vLLM's ids for `prompt`."""
        asked = decode(await read_body(http), TokenizeRequest)
        add_special_tokens = asked.add_special_tokens is not False
        if asked.inputs is not None:
            return json_response(await self._spans(asked.inputs, add_special_tokens))
        if asked.prompt is None:
            raise Invalid("inputs", "is missing (or `prompt`, in vLLM's shape)")
        self._service.check_model(asked.model)
        encoded = await self._service.encode(Prompt(asked.prompt, add_special_tokens=add_special_tokens))
        ids, longest = encoded.token_ids, self._service.limits().max_total_tokens
        return json_response(TokenizedText(len(ids), longest, ids))

    async def detokenize(self, http: web.Request) -> web.Response:
        asked = decode(await read_body(http), DetokenizeRequest)
        self._service.check_model(asked.model)
        bounds.check_token_ids("tokens", asked.tokens, self._service.tokenizer.vocab_size)
        return json_response(DetokenizedText(self._service.tokenizer.decode(asked.tokens)))

    async def chat_tokenize(self, http: web.Request) -> web.Response:
        """A conversation as the model would get it."""
        asked = decode(await read_body(http), ChatRequest)
        text = self._service.chat_text(messages_of(asked), asked.add_generation_prompt is not False)
        return json_response(ChatTokenized(await self._spans(text, add_special_tokens=False), text))

    async def _spans(self, text: str, add_special_tokens: bool) -> list[Span]:
        return await asyncio.to_thread(self._service.tokenizer.encode_spans, text, add_special_tokens)
