"""The steps of every generation route: admit a prompt, encode it, generate, end the requests."""

import asyncio
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import cast

import msgspec
from aiohttp import web

from router.api.arrival import ARRIVED, SUBMITTED
from router.api.constraints import Refusal, Wanted, check_together
from router.api.encoding import SHORT_CHARACTERS, EncodingPool
from router.api.errors import Invalid, Refused
from router.api.grammars import Grammars
from router.api.sse import Streams
from router.api.tenants import Tenants
from router.api.tgi_structs import Parameters
from router.api.validation import TGI, Allowance, Limits, limits_of
from router.catalog.served_model import Target
from router.fleet.dispatcher import Dispatcher
from router.grammar.constraint import Reason
from router.grammar.observer import GrammarObserver
from router.processes import processes
from router.scheduling.request import Finished, GenerationFailed, Request, Spec
from router.settings.config import Config
from router.settings.model_names import hub_id
from router.text.chat_template import ChatTemplateError
from router.text.prompt import Encoded, Prompt
from router.text.tokenizer import Token, Tokenizer

_ALIASES = ("", "tgi", "dummy", "default")  # sent by clients that know no model name
_ADDRESSES = ("http://", "https://")  # Hugging Face's clients send the server's address
CHARACTERS_PER_TOKEN = 4  # of English; good enough to refuse by
_BODIES_ENCODED = 2  # bodies of the largest size encoded at a time
_LOADING_RETRY_S = 5


class Answer(msgspec.Struct, frozen=True):
    """A generation that has ended, with all its tokens."""

    request: Request
    tokens: list[Token]
    finished: Finished

    @property
    def mean_logprob(self) -> float:
        return sum(token.logprob for token in self.tokens) / max(1, len(self.tokens))


class Service:
    """The one object that handlers share."""

    def __init__(
        self,
        config: Config,
        dispatcher: Dispatcher,
        target: Target,
        candidates: Sequence[str] = (),
        observer: GrammarObserver | None = None,
    ):
        """Every shard starts with `target`; `candidates` are the names of all models that may serve."""
        self.config = config
        self.dispatcher = dispatcher
        self.candidates = candidates
        self.grammars = Grammars(processes(), observer or GrammarObserver())
        self.encoding = EncodingPool(_BODIES_ENCODED * config.payload_limit)
        self.streams = Streams(config.sse_keep_alive_ms / 1000)
        self.started_at = int(time.time())
        self._tenants = Tenants(config.prefix_sharing)
        self._first = target

    async def end(self, app: web.Application) -> None:
        """Stop the encoding threads."""
        self.encoding.close()
        self.grammars.close()

    @property
    def model(self) -> str:
        """The name under which the served model is known, whichever it is."""
        return self.config.model_name

    @property
    def target(self) -> Target:
        """The target on which a request that arrives now will most likely begin."""
        current = self.dispatcher.current
        return self._first if current is None else current.target

    @property
    def tokenizer(self) -> Tokenizer:
        return self.target.tokenizer

    @property
    def root(self) -> str:
        """The name by which benchmarks look up the tokenizer: a hub id, else the served name."""
        return hub_id(self.config.model_id) or self.model

    @property
    def version(self) -> str:
        ready = self.dispatcher.limits
        return "" if ready is None else ready.version

    def limits(self, dialect: Allowance = TGI) -> Limits:
        """Raises `GenerationFailed` 429 while the model is loading."""
        ready = self.dispatcher.limits
        if ready is None:
            raise GenerationFailed("The model is loading.", "overloaded", 429, _LOADING_RETRY_S)
        dispatcher = self.dispatcher
        longest, exact = dispatcher.max_total_tokens, dispatcher.supports_exact
        return limits_of(self.config, ready, longest, exact, dialect)

    def check_model(self, model: str | None) -> None:
        """Raises `Refused` 404 for a model that is not served here."""
        names = (*self.config.model_names, self.config.deployment, *self.candidates)
        others = (*_ALIASES, self.config.model_id)
        if model is not None and model not in names + others and not model.startswith(_ADDRESSES):
            known = ", ".join(dict.fromkeys(names))
            message = f"The model `{model}` is not served here; `model` may be {known}."
            raise Refused(message, 404, "model_not_found", field="model")

    def admit(self, prompts: Sequence[str | list[int]], per_prompt: int, limits: Limits) -> None:
        """Check the queue's bounds on arrival, before encoding. Raises `GenerationFailed` 429 under overload.

        Raises `Invalid` for a call of several answers that an empty queue could not hold.
        """
        num_tokens = sum(map(_estimate_tokens, prompts)) * per_prompt
        num_requests = len(prompts) * per_prompt
        if num_requests > 1:
            self._check_size(num_tokens, num_requests, limits)
        self.dispatcher.try_admit(num_tokens, num_requests, limits.max_concurrent_requests)

    def _check_size(self, num_tokens: int, num_requests: int, limits: Limits) -> None:
        most = limits.max_concurrent_requests
        if most is not None and num_requests > most:
            raise Invalid("n", f"times the prompts must be <= {most}. Given: {num_requests}")
        most_tokens, most_requests = self.dispatcher.max_queued_tokens, self.dispatcher.max_queued_requests
        if num_tokens > most_tokens or num_requests > most_requests:
            problem = f"ask for {num_requests} answers of about {num_tokens} prompt tokens at once"
            raise Invalid("inputs", f"{problem}: the queue holds {most_requests} of {most_tokens} together")

    async def encode(self, prompts: Sequence[Prompt]) -> list[Encoded]:
        """Encode prompts; long ones on a thread, so that streams go on meanwhile.

        Raises `Invalid` when the model's template refuses a conversation, or there is none, and
        `GenerationFailed` 429 when the lane for texts of this length is full.
        """
        tokenizer, num_characters = self.tokenizer, sum(prompt.num_characters for prompt in prompts)

        def work() -> list[Encoded]:
            return [
                Encoded(prompt.encoded(tokenizer)[0], tokenizer, prompt.with_call_format(tokenizer))
                for prompt in prompts
            ]

        with template_errors():
            if num_characters <= SHORT_CHARACTERS and not any(prompt.messages for prompt in prompts):
                return work()
            return await self.encoding.run(num_characters, work)

    async def grammar(self, wanted: Wanted | None, asked: Parameters, limits: Limits) -> str:
        """The grammar of a constraint, "" without one. An unknown one is compiled in another process.

        Raises `Refusal` when it cannot be kept, and `GenerationFailed` 429 when there is too much to do.
        """
        if wanted is None:
            return ""
        if not limits.can_constrain:
            problem = "is not supported: these shards are simulated, or their model has no tokenizer.json"
            raise Refusal(wanted.field, problem, Reason.UNABLE)
        check_together(wanted.name, asked)
        return await self.grammars.of(wanted)

    @contextmanager
    def running(self, http: web.Request, specs: list[Spec]) -> Iterator[list[Request]]:
        """Submit all specs; on leaving the context, abort the requests that have not ended.

        Raises `GenerationFailed` when one is refused.
        """
        requests: list[Request] = []
        try:
            for spec in specs:
                salt = self._tenants.salt(http, spec.cache_salt)
                request = self.dispatcher.submit(msgspec.structs.replace(spec, cache_salt=salt))
                request.timeline.received = http.get(ARRIVED)
                request.traceparent = http.headers.get("traceparent", "")
                requests.append(request)
            http[SUBMITTED] = asyncio.get_running_loop().time()
            yield requests
        finally:
            for request in requests:
                self.dispatcher.abort(request)


@contextmanager
def template_errors() -> Iterator[None]:
    """Turn a template's refusal of a conversation into a client error (`Invalid`)."""
    try:
        yield
    except ChatTemplateError as error:
        raise Invalid("messages", f"cannot be made into a prompt: {error}") from None


async def answers_of(requests: list[Request]) -> list[Answer]:
    """Wait for the end of all. Raises the first `GenerationFailed`."""
    if len(requests) == 1:
        return [await _answer_of(requests[0])]
    return await asyncio.gather(*map(_answer_of, requests))


async def _answer_of(request: Request) -> Answer:
    *tokens, finished = await request.take_all()
    assert isinstance(finished, Finished)
    return Answer(request, cast(list[Token], tokens), finished)


def _estimate_tokens(prompt: str | list[int]) -> int:
    return len(prompt) // CHARACTERS_PER_TOKEN + 1 if isinstance(prompt, str) else len(prompt)
