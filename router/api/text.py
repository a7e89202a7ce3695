"""Routes that tokenize and detokenize, in TGI's and vLLM's formats."""

import itertools
from collections.abc import Callable, Iterable

import msgspec
from aiohttp import web

from router.api import validation
from router.api.decode import decode, read_body
from router.api.errors import Invalid
from router.api.fields import CHAT, decode_call
from router.api.openai_messages import chat_prompt
from router.api.openai_structs import ChatRequest
from router.api.service import CHARACTERS_PER_TOKEN, Service, template_errors
from router.api.tgi_structs import DetokenizedText, DetokenizeRequest, TokenizedText, TokenizeRequest
from router.text.prompt import Prompt
from router.text.tokenizer import Span

_SPANS_AT_ONCE = 10_000  # encoded as JSON per write

_json = msgspec.json.Encoder().encode


class TextApi:
    """Handlers that need the tokenizer and no shard."""

    def __init__(self, service: Service):
        self._service = service

    async def tokenize(self, http: web.Request) -> web.StreamResponse:
        """TGI's list of tokens for `inputs`, vLLM's ids for `prompt`."""
        asked, tokenizer = decode(await read_body(http), TokenizeRequest), self._service.tokenizer
        adds, text = asked.add_special_tokens is not False, asked.inputs
        if text is not None:
            return await self._answer(
                http, len(text), lambda: _json_of_spans(tokenizer.encode_spans(text, adds))
            )
        if asked.prompt is None:
            raise Invalid("inputs", "is missing (or `prompt`, in vLLM's shape)")
        self._service.check_model(asked.model)
        prompt, longest = (
            Prompt(asked.prompt, add_special_tokens=adds),
            self._service.limits().max_total_tokens,
        )

        def work() -> bytes:
            ids, _ = prompt.encoded(tokenizer)
            return _json(TokenizedText(len(ids), longest, ids))

        return await self._answer(http, prompt.num_characters, work)

    async def detokenize(self, http: web.Request) -> web.StreamResponse:
        asked, tokenizer = decode(await read_body(http), DetokenizeRequest), self._service.tokenizer
        self._service.check_model(asked.model)

        def work() -> bytes:
            validation.check_token_ids("tokens", asked.tokens, tokenizer.vocab_size)
            return _json(DetokenizedText(tokenizer.decode(asked.tokens)))

        return await self._answer(http, CHARACTERS_PER_TOKEN * len(asked.tokens), work)

    async def chat_tokenize(self, http: web.Request) -> web.StreamResponse:
        """The prompt text of a conversation, and its tokens."""
        asked = decode_call(await read_body(http), CHAT, ChatRequest)
        tokenizer, prompt = self._service.tokenizer, chat_prompt(asked)

        def work() -> bytes:
            text = prompt.written(tokenizer)
            spans = _json_of_spans(tokenizer.encode_spans(text, prompt.adds_special_tokens))
            return _json({"tokenize_response": msgspec.Raw(spans), "templated_text": text})

        with template_errors():
            return await self._answer(http, prompt.num_characters, work)

    async def _answer(
        self, http: web.Request, num_characters: int, work: Callable[[], bytes]
    ) -> web.StreamResponse:
        """Answer with what `work` returns. Its room is kept until the client has read most of it."""
        with self._service.encoding.room(num_characters) as room:
            response = web.Response(body=await room.run(work), content_type="application/json")
            await response.prepare(http)
            await response.write_eof()
        return response


def _json_of_spans(spans: Iterable[Span]) -> bytes:
    left, parts = iter(spans), []
    while some := list(itertools.islice(left, _SPANS_AT_ONCE)):
        parts.append(_json(some)[1:-1])
    return b"[" + b",".join(parts) + b"]"
