"""The HTTP side on a real socket, before a dispatcher that generates what a test tells it to."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec
import tokenizers
from aiohttp import ClientSession
from tokenizers import decoders, models, pre_tokenizers

from router.api.service import Service
from router.app import build_app, listening
from router.catalog.catalog import Catalog, CatalogEntry
from router.catalog.repository import Candidate, Repository
from router.catalog.served_model import ServedModel, Target
from router.control.loop import ReassessmentLoop
from router.control.swap_controller import SwapController
from router.fleet.dispatcher import ShardState, State
from router.fleet.swap import SwapError, SwapOptions, SwapResult
from router.observers.metrics import GrammarMetrics
from router.scheduling.request import GenerationFailed, Request, Spec, Status
from router.settings.config import Config
from router.text.chat_template import ChatTemplate
from router.text.tokenizer import Tokenizer
from shard.messages import FinishReason, Ready, ShardConfig, TokenOutput
from telemetry.prometheus import Metrics
from telemetry.store import Store

EOS = 256
VOCAB_SIZE = 257
MAX_TOTAL_TOKENS = 512
TEMPLATE = (
    "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}bot: {% endif %}"
)


def byte_tokenizer(template: str | None = TEMPLATE, special: Sequence[str] = ()) -> Tokenizer:
    """One token for every byte, and `<eos>`."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = tokenizers.Tokenizer(models.BPE({character: id for id, character in enumerate(alphabet)}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(["<eos>", *special])
    return Tokenizer(backend, ChatTemplate(template, {}) if template else None)


def ask(path: str, text: str = "Hi", **more: Any) -> dict[str, Any]:
    """A body that asks a route for text; `more` goes where its parameters stand."""
    if path == "/v1/responses":
        return {"input": text} | more
    if path == "/v1/completions":
        return {"prompt": text} | more
    if path in ("/v1/chat/completions", "/chat_tokenize"):
        return {"messages": [{"role": "user", "content": text}]} | more
    return {"inputs": text, "parameters": more}


class FakeDispatcher:
    """Answers every prompt with `says`, a token at a time; a test may hold it, or make it refuse or fail."""

    def __init__(self, tokenizer: Tokenizer, name: str = Config().model_name):
        self.says = "Hello!"
        self.refuses: GenerationFailed | None = None
        self.fails_after: int | None = None  # tokens
        self.held: asyncio.Event = asyncio.Event()  # nothing is generated while it is clear
        self.held.set()
        self.limits: Ready | None = ready()
        self.max_total_tokens = MAX_TOTAL_TOKENS
        self.max_queued_tokens = 100_000
        self.max_queued_requests = 300
        self.max_requests: int | None = None
        self.max_running_tokens = 0
        self.is_draining = False
        self.exit_threshold: float | None = None
        self.before: Target | None = None
        self.may_swap = asyncio.Event()
        self.may_swap.set()
        self.fails_swaps: str | None = None
        self.swaps: list[tuple[Target, SwapOptions]] = []
        self.submitted: list[Request] = []
        self.aborted: list[Request] = []
        self.admitted: list[tuple[int, int]] = []
        self._changed = asyncio.Event()
        self._tokenizer = tokenizer
        self.target = Target(name, ShardConfig("/models/tiny"), tokenizer)
        self._tasks: list[asyncio.Task[None]] = []

    @property
    def current(self) -> ServedModel | None:
        return None if self.limits is None else ServedModel(0, self.target, self.limits)

    @property
    def supports_exact(self) -> bool:
        return self.current is not None and self.current.is_whole

    @property
    def is_ready(self) -> bool:
        return self.limits is not None and not self.is_draining

    def try_admit(self, num_tokens: int, num_requests: int = 1, max_requests: int | None = None) -> None:
        self.max_requests = max_requests
        self.admitted.append((num_tokens, num_requests))
        if self.refuses is not None:
            raise self.refuses

    def submit(self, spec: Spec) -> Request:
        request = Request(len(self.submitted) + 1, spec, _now())
        self.submitted.append(request)
        self._tasks.append(asyncio.create_task(self._generate(request)))
        self._changed.set()
        return request

    def abort(self, request: Request, message: str = "The request was aborted.") -> None:
        if request.status is not Status.FINISHED:
            self.aborted.append(request)
            request.fail(GenerationFailed(message, "cancelled", 499), _now())
            self._changed.set()

    async def until(self, is_true: Callable[[], bool]) -> None:
        """Wait for what submissions, aborts or ends bring about."""
        async with asyncio.timeout(10):
            while not is_true():
                self._changed.clear()
                await self._changed.wait()

    def requests(self) -> list[Request]:
        return self.submitted

    def find(self, request_id: int) -> Request | None:
        return next((request for request in self.submitted if request.id == request_id), None)

    def state(self) -> State:
        serves = "loading" if self.limits is None else "draining" if self.is_draining else "serving"
        depth = self.limits.depth if self.limits is not None else 0
        name = self.target.name
        shard = ShardState(0, serves, name, f"v{depth}", depth, 4, "full", 1, 1, 10, 20, 5.0, 0, "")
        return State(waiting=0, queued_tokens=0, running=0, is_draining=self.is_draining, shards=[shard])

    def targets(self, shard: int | None = None) -> list[tuple[Target, Target | None]]:
        self._check(shard)
        return [(self.target, self.before)]

    def check_swappable(self, shard: int | None = None) -> frozenset[int]:
        self._check(shard)
        return frozenset([0])

    async def swap(self, targets: dict[int, Target], options: SwapOptions) -> list[SwapResult]:
        """Swap when released, or fail as the test says."""
        await self.may_swap.wait()
        if self.fails_swaps is not None:
            raise SwapError(self.fails_swaps)
        self.before, self.target = self.target, targets[0]
        depth = self.target.config.num_layers or 4
        self.limits = msgspec.structs.replace(ready(), depth=depth, version=f"v{depth}")
        assert self.current is not None
        self.swaps.append((self.target, options))
        return [SwapResult(self.current, {"prepare": 5.0, "commit": 1.0}, num_migrated=0)]

    def drain(self, shard: int | None = None) -> None:
        self._set_draining(shard, True)

    def resume(self, shard: int | None = None) -> None:
        self._set_draining(shard, False)

    def clear_cache(self, shard: int | None = None) -> int:
        self._check(shard)
        return 0

    def _set_draining(self, shard: int | None, is_draining: bool) -> None:
        self._check(shard)
        self.is_draining = is_draining

    def _check(self, shard: int | None) -> None:
        if shard not in (None, 0):
            raise KeyError(shard)

    async def _generate(self, request: Request) -> None:
        await self.held.wait()
        spec = request.spec
        assert self.current is not None
        request.start(0, self.current, _now())
        if spec.sampling.prompt_logprobs:
            request.put_prompt([self._output(id, spec) for id in spec.prompt_token_ids[1:]])
        ids = self._tokenizer.encode(self.says) if self.says else []
        ids = ids if spec.ignore_eos else [*ids, EOS]
        for number, id in enumerate(ids[: spec.max_new_tokens]):
            await self.held.wait()
            if number == self.fails_after:
                request.fail(GenerationFailed("The shard died twice under this request."), _now())
            if request.status is Status.FINISHED:
                break
            is_last = number + 1 == spec.max_new_tokens
            finish = FinishReason.EOS if id == EOS else FinishReason.LENGTH if is_last else None
            if request.put([self._output(id, spec)], finish, _now()):
                break
            await asyncio.sleep(0)
        if request.status is not Status.FINISHED:
            request.put([], FinishReason.LENGTH, _now())
        self._changed.set()

    def _output(self, id: int, spec: Spec) -> TokenOutput:
        top = [(id, -0.5), (id + 1, -1.5), (id + 2, -2.5)][: spec.sampling.num_top_tokens]
        return TokenOutput(id, -0.5, exit_layer=3, confidence=0.9, top=top)


def ready() -> Ready:
    return Ready(
        model="/models/tiny",
        version="v1",
        device="sim",
        dtype="float32",
        num_layers=4,
        depth=4,
        vocab_size=VOCAB_SIZE,
        max_total_tokens=MAX_TOTAL_TOKENS,
        block_size=16,
        num_blocks=20,
        eos_token_ids=[EOS],
        num_parameters=1,
        weight_bytes=1,
        load_ms=1.0,
        can_constrain=True,
        exit_thresholds={3: 0.9},
    )


def catalog_of(config: Config, tokenizer: Tokenizer) -> Catalog:
    """The model that serves, left early at two of its layers, and a small one that is not to be had."""
    tiny = Candidate(name=config.model_name, model="/models/tiny", exits="/exits", depths=(2, 3))
    gone = Candidate(name="gone", model="/models/gone")
    entries = [
        CatalogEntry(tiny, Path("/models/tiny"), 4),
        CatalogEntry(gone, Path("/models/gone"), 0, unavailable_reason="it is gone."),
    ]
    catalog = Catalog(config, Repository(candidates=(tiny, gone)), entries)
    catalog.tokenizers[entries[0].folder] = tokenizer
    return catalog


class Client:
    """A session that knows the address, and the dispatcher behind it."""

    def __init__(
        self,
        session: ClientSession,
        url: str,
        service: Service,
        dispatcher: FakeDispatcher,
        controller: SwapController,
    ):
        self.controller = controller
        self.encoding = service.encoding
        self.session = session
        self.url = url
        self.config = service.config
        self.tokenizer = service.tokenizer
        self.dispatcher = dispatcher

    async def post(self, path: str, body: Any, **more: Any) -> tuple[int, Any]:
        """Status and decoded JSON of a call whose body is JSON."""
        async with self.session.post(self.url + path, json=body, **more) as response:
            return response.status, await response.json()

    async def get(self, path: str, **more: Any) -> tuple[int, Any]:
        async with self.session.get(self.url + path, **more) as response:
            return response.status, await response.json()

    async def events(self, path: str, body: Any) -> list[str]:
        """What stands behind `data: ` in each event of a stream."""
        async with self.session.post(self.url + path, json=body) as response:
            assert response.status == 200, await response.text()
            assert response.content_type == "text/event-stream"
            text = await response.text()
        assert text.endswith("\n\n")
        events = text[:-2].split("\n\n")
        assert all(event.startswith("data: ") and "\n" not in event for event in events)
        return [event.removeprefix("data: ") for event in events]


@contextlib.asynccontextmanager
async def serving(
    template: str | None = TEMPLATE, special: Sequence[str] = (), **settings: Any
) -> AsyncIterator[Client]:
    """The whole HTTP side, on a free port of this machine."""
    tokenizer = byte_tokenizer(template, special)
    config = Config(**{"hostname": "127.0.0.1", "port": 0, **settings})
    dispatcher = FakeDispatcher(tokenizer, config.model_name)
    store, catalog = Store(None, "poems", "one"), catalog_of(config, tokenizer)
    metrics = Metrics()
    observer = GrammarMetrics(metrics.helios, config.model_name)
    service = Service(config, dispatcher, dispatcher.target, catalog.names, observer)
    controller = SwapController(dispatcher, catalog, store.audit)
    loop = ReassessmentLoop(catalog.repository, {}, dispatcher, controller, store, SwapOptions())
    app = build_app(service, controller, loop, metrics, store)
    async with listening(app, config) as url, ClientSession() as session:
        yield Client(session, url, service, dispatcher, controller)


def _now() -> float:
    return asyncio.get_running_loop().time()
