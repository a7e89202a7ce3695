"""All routes except the documents'. Serving, keys and documentation follow from these lists."""

from functools import partial

from router.api.auth import Auth
from router.api.browser import Pages
from router.api.commands import DECISIONS_PARAMETERS, CommandsApi
from router.api.invocations import Invocations
from router.api.openai import OpenAIApi
from router.api.openai_structs import (
    ChatChunk,
    ChatCompletion,
    ChatRequest,
    Completion,
    CompletionRequest,
    Model,
    Models,
)
from router.api.ops import OpsApi
from router.api.ops_structs import (
    Aborted,
    AbortRequest,
    Accepted,
    CacheCleared,
    Decisions,
    PinRequest,
    RequestReport,
    Requests,
    ShardChoice,
    StateReport,
    SwapRequest,
    ThresholdRequest,
)
from router.api.responses import ResponsesApi
from router.api.responses_structs import Response, ResponseEvent, ResponsesRequest
from router.api.route import Route
from router.api.status import StatusApi
from router.api.text import TextApi
from router.api.tgi import TgiApi
from router.api.tgi_structs import (
    ChatTokenized,
    CompatRequest,
    DetokenizedText,
    DetokenizeRequest,
    GenerateRequest,
    GenerateResponse,
    Info,
    StreamEvent,
    TokenizedText,
    TokenizeRequest,
)
from router.api.windows import PARAMETERS, WindowsApi
from router.api.windows_structs import Windows
from router.text.tokenizer import Span
from telemetry.audit import Decision
from telemetry.overview import Overview


def tgi_routes(api: TgiApi) -> list[Route]:
    route = partial(Route, generates=True)
    answers = list[GenerateResponse]
    return [
        route("POST /generate", api.generate, "Generate text.", GenerateRequest, GenerateResponse),
        route(
            "POST /generate_stream",
            api.generate_stream,
            "Generate text, one event per token.",
            GenerateRequest,
            streams=StreamEvent,
        ),
        route("POST /", api.compat, "Generate text, streamed or not.", CompatRequest, answers, StreamEvent),
    ]


def openai_routes(api: OpenAIApi) -> list[Route]:
    route = partial(Route, generates=True)
    return [
        route(
            "POST /v1/chat/completions",
            api.chat,
            "Answer a conversation.",
            ChatRequest,
            ChatCompletion,
            ChatChunk,
        ),
        route(
            "POST /v1/completions",
            api.completions,
            "Continue a text, or score one.",
            CompletionRequest,
            Completion,
            Completion,
        ),
        Route("GET /v1/models", api.models, "What is served.", gives=Models),
        Route("GET /v1/models/{id:.+}", api.model, "One of them.", gives=Model),
    ]


def responses_routes(api: ResponsesApi) -> list[Route]:
    return [
        Route(
            "POST /v1/responses",
            api.respond,
            "Answer a conversation, as items and events.",
            ResponsesRequest,
            Response,
            ResponseEvent,
            generates=True,
        )
    ]


def invocation_routes(tgi: TgiApi, openai: OpenAIApi) -> list[Route]:
    return [
        Route(
            "POST /invocations",
            Invocations(tgi, openai).invoke,
            "SageMaker: any of the bodies that generate.",
            (CompatRequest, ChatRequest, CompletionRequest),
            (list[GenerateResponse], ChatCompletion, Completion),
            (StreamEvent, ChatChunk, Completion),
            generates=True,
        )
    ]


def text_routes(api: TextApi) -> list[Route]:
    tokenized = (list[Span], TokenizedText)
    return [
        Route("POST /tokenize", api.tokenize, "Tokens of a text.", TokenizeRequest, tokenized),
        Route("POST /detokenize", api.detokenize, "Text of tokens.", DetokenizeRequest, DetokenizedText),
        Route(
            "POST /chat_tokenize", api.chat_tokenize, "Tokens of a conversation.", ChatRequest, ChatTokenized
        ),
    ]


def status_routes(api: StatusApi, pages: Pages) -> list[Route]:
    route = partial(Route, auth=Auth.OPEN)
    return [
        Route("GET /info", api.info, "The model and the limits.", gives=Info),
        route(
            "GET /",
            pages.page_or("playground.html", api.health),
            "As /health; browsers get the playground.",
            may_be_unready=True,
        ),
        route("GET /ping", api.health, "As /health, for SageMaker.", may_be_unready=True),
        route("GET /health", api.health, "Could it generate? 503 if not.", may_be_unready=True),
        route("GET /livez", api.livez, "Is the process alive?"),
        route(
            "GET /readyz",
            api.readyz,
            "Should it be sent requests? 503 while it loads or drains.",
            may_be_unready=True,
        ),
        route("GET /metrics", api.metrics, "Metrics for Prometheus.", gives=str, media_type="text/plain"),
    ]


def command_routes(api: CommandsApi) -> list[Route]:
    route = partial(Route, auth=Auth.ADMIN, gives=Accepted, status=202)
    return [
        route("POST /ops/swap", api.swap, "Change model or depth.", SwapRequest),
        route("POST /ops/pin", api.pin, "Serve this, whatever the loop thinks.", PinRequest),
        route("POST /ops/unpin", api.unpin, "Leave the choice to the loop again."),
        route(
            "POST /ops/rollback",
            api.rollback,
            "Serve what was served before.",
            ShardChoice,
            is_body_optional=True,
        ),
        route("POST /ops/threshold", api.threshold, "When tokens leave early.", ThresholdRequest),
        Route(
            "GET /ops/decisions",
            api.decisions,
            "What was decided, the latest first.",
            gives=Decisions,
            query=DECISIONS_PARAMETERS,
            auth=Auth.ADMIN,
        ),
        Route(
            "GET /ops/decisions/{id}",
            api.decision,
            "One decision, and what came of it.",
            gives=Decision,
            auth=Auth.ADMIN,
        ),
    ]


def page_routes(pages: Pages) -> list[Route]:
    show = pages.page("ops.html")
    return [
        Route("GET /ops", show, "Operation, for people.", gives=str, media_type="text/html", auth=Auth.OPEN)
    ]


def ops_routes(api: OpsApi) -> list[Route]:
    route = partial(Route, auth=Auth.ADMIN)
    optional = partial(route, is_body_optional=True)
    return [
        route("GET /ops/state", api.state, "Shards and queue.", gives=StateReport),
        route(
            "GET /ops/overview", api.overview, "All routers, with figures of the last minute.", gives=Overview
        ),
        route("GET /ops/requests", api.requests, "Live requests and the last that ended.", gives=Requests),
        route("GET /ops/requests/{id}", api.request, "The time line of one.", gives=RequestReport),
        optional("POST /ops/drain", api.drain, "Give a shard nothing new.", ShardChoice, StateReport),
        optional("POST /ops/resume", api.resume, "Undo drain.", ShardChoice, StateReport),
        route("POST /ops/abort", api.abort, "End a request.", AbortRequest, Aborted),
        optional("POST /ops/cache/clear", api.clear_cache, "Empty prefix caches.", ShardChoice, CacheCleared),
    ]


def windows_routes(api: WindowsApi) -> list[Route]:
    return [
        Route(
            "GET /ops/windows",
            api.windows,
            "What was served, as time series.",
            gives=Windows,
            query=PARAMETERS,
            auth=Auth.ADMIN,
        )
    ]
