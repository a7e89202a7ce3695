"""Every error as JSON, in the dialect of the route: TGI's on native routes, OpenAI's under /v1."""

from collections.abc import Mapping
from typing import Self

import msgspec
from aiohttp import web

from router.scheduling.request import GenerationFailed


class Refused(GenerationFailed):
    """A call refused before any generation. `field` is the parameter at fault, if any."""

    def __init__(self, message: str, status: int, kind: str, field: str | None = None):
        super().__init__(message, kind=kind, status=status)
        self.field = field


def internal_error() -> Refused:
    """An error of the server's own; the caller logs it."""
    return Refused("The server failed; its log says more.", 500, "incomplete_generation")


class MethodNotAllowed(Refused):
    """A route was called by a method other than the `allowed` ones."""

    def __init__(self, path: str, method: str, allowed: str):
        super().__init__(f"{path} takes {allowed}, not {method}.", 405, "method_not_allowed")
        self.allowed = allowed


class Invalid(Refused):
    """A parameter outside its bounds: `` `field` problem ``, 422."""

    def __init__(self, field: str, problem: str):
        super().__init__(f"`{field}` {problem}", status=422, kind="validation", field=field)
        self.parameter = field
        self.problem = problem

    def called(self, names: Mapping[str, str]) -> Self:
        """The same error under the name by which the client knows the parameter."""
        return type(self)(names.get(self.parameter, self.parameter), self.problem)


class ContextOverflow(Invalid):
    """Prompt and answer exceed the context. `problem` has the words that clients search for."""


class TgiError(msgspec.Struct, frozen=True):
    """TGI's error body."""

    error: str
    error_type: str


class OpenAIErrorDetail(msgspec.Struct, frozen=True):
    message: str
    type: str
    param: str | None
    code: str | None


class OpenAIError(msgspec.Struct, frozen=True):
    """OpenAI's error body, with TGI's type beside it for clients that read that one."""

    error: OpenAIErrorDetail
    error_type: str


_OPENAI_TYPES = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}
_OPENAI_CODES = {
    "unauthorized": "invalid_api_key",
    "model_not_found": "model_not_found",
    "overloaded": "rate_limit_exceeded",
    "payload_too_large": "payload_too_large",
}
_ABORTED = 499  # aborted by someone else: the client is still connected


def is_openai(path: str) -> bool:
    return path.startswith("/v1/") or path == "/v1"


def error_body(failure: GenerationFailed, openai: bool) -> bytes:
    """The failure as JSON."""
    message = str(failure)
    if not openai:
        prefix = "Input validation error: " if failure.kind == "validation" else ""
        return msgspec.json.encode(TgiError(prefix + message, failure.kind))
    fallback = "invalid_request_error" if failure.status < 500 and failure.status != 424 else "server_error"
    detail = OpenAIErrorDetail(
        message,
        type=_OPENAI_TYPES.get(failure.status, fallback),
        param=getattr(failure, "field", None),
        code=_code(failure),
    )
    return msgspec.json.encode(OpenAIError(detail, failure.kind))


def _code(failure: GenerationFailed) -> str | None:
    return (
        "context_length_exceeded" if isinstance(failure, ContextOverflow) else _OPENAI_CODES.get(failure.kind)
    )


def status_of(failure: GenerationFailed, openai: bool) -> int:
    """HTTP status to send. OpenAI's clients expect 400 for a refused value, TGI's 422."""
    if failure.status == _ABORTED:
        return 424
    return 400 if openai and failure.status == 422 else failure.status


def error_response(failure: GenerationFailed, openai: bool) -> web.Response:
    headers = {}
    if failure.retry_after_s is not None:
        headers["Retry-After"] = str(failure.retry_after_s)
    if failure.status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    if isinstance(failure, MethodNotAllowed):
        headers["Allow"] = failure.allowed
    if failure.kind == "content_encoding":
        headers["Accept-Encoding"] = "identity"
    return web.Response(
        body=error_body(failure, openai),
        status=status_of(failure, openai),
        headers=headers,
        content_type="application/json",
    )


def from_http_exception(error: web.HTTPException, method: str, path: str) -> GenerationFailed:
    """aiohttp's own refusal as a failure of ours."""
    match error.status:
        case 404:
            return Refused(f"There is no route {path}; see /docs for those there are.", 404, "not_found")
        case 405:
            return MethodNotAllowed(path, method, error.headers.get("Allow", ""))
        case 417:
            return Refused("Of `Expect`, only 100-continue is known.", 417, "expectation_failed")
        case 413:
            return Refused("The request body is too large.", 413, "payload_too_large")
        case status:
            return Refused(error.reason, status, "http")
