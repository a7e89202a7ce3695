"""Middleware around every handler: keys, metrics, common headers, errors as JSON."""

import asyncio
import logging

from aiohttp import web

from router.api.arrival import ARRIVED, FAILURE, SUBMITTED
from router.api.auth import Cors, Keys
from router.api.constraints import Refusal
from router.api.errors import error_response, from_http_exception, internal_error, is_openai
from router.api.headers import REQUEST_ID, header_value, label_of
from router.api.route import Handler, Route
from router.api.service import Service
from router.scheduling.request import GenerationFailed
from telemetry.prometheus import TgiMetrics

log = logging.getLogger(__name__)


class Middleware:
    """A middleware and a signal for the application."""

    def __init__(self, service: Service, routes: list[Route], metrics: TgiMetrics):
        config = service.config
        self._service = service
        self._metrics = metrics
        self._keys = Keys(config.api_key, config.admin_key, config.hostname or "")
        self._cors = Cors(config.cors_allow_origin)
        self._routes = {(route.method, route.path): route for route in routes}

    def install(self, app: web.Application) -> None:
        app.middlewares.append(self._answer)
        app.on_response_prepare.append(self._add_headers)

    @web.middleware
    async def _answer(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """The only place where an error becomes a response."""
        request[ARRIVED] = asyncio.get_running_loop().time()
        try:
            return self._cors.preflight(request) or await self._guarded(request, handler)
        except GenerationFailed as error:
            failure = error
        except web.HTTPException as error:
            failure = from_http_exception(error, request.method, request.path)
        except ConnectionError:
            raise  # the client has gone, and nobody is left to tell
        except Exception:
            log.exception("%s %s failed", request.method, request.path)
            failure = internal_error()
        return error_response(failure, is_openai(request.path))

    async def _guarded(self, http: web.Request, handler: Handler) -> web.StreamResponse:
        route = self._route(http)
        if route is None:
            return await handler(http)  # aiohttp's own refusal
        self._keys.check(http, route.auth)
        return await (self._counted(http, handler) if route.generates else handler(http))

    def _route(self, http: web.Request) -> Route | None:
        resource = http.match_info.route.resource
        method = "GET" if http.method == "HEAD" else http.method
        return None if resource is None else self._routes.get((method, resource.canonical))

    async def _counted(self, http: web.Request, handler: Handler) -> web.StreamResponse:
        """Each generation call ends in success or in one kind of failure."""
        self._metrics.request_count.inc()
        failure: str | None = "dropped"  # TGI's word for a client that has gone
        try:
            response = await handler(http)
            failure = http.get(FAILURE)
            return response
        except GenerationFailed as error:
            failure = error.kind
            if isinstance(error, Refusal):
                self._service.grammars.observer.on_refused(error.reason)
            raise
        except Exception:
            failure = "incomplete_generation"
            raise
        finally:
            self._count(http, failure)

    def _count(self, http: web.Request, failure: str | None) -> None:
        if SUBMITTED in http:
            self._metrics.request_validation_duration.observe(http[SUBMITTED] - http[ARRIVED])
        if failure is None:
            self._metrics.request_success.inc()
        else:
            self._metrics.request_failure.labels(failure).inc()

    async def _add_headers(self, http: web.Request, response: web.StreamResponse) -> None:
        """Add the common headers. Only here are header values made safe: model names may hold any character.

        A client's own id came as a header, and is returned unchanged, with refusals too.
        """
        headers = response.headers
        if REQUEST_ID in http.headers:
            headers.setdefault(REQUEST_ID, label_of(http))
        headers.update(self._cors.headers(http))
        headers.setdefault("x-helios-model", self._service.target.name)
        headers.setdefault("x-helios-version", self._service.version)
        for name, value in list(headers.items()):
            if name != REQUEST_ID and not (value.isascii() and value.isprintable()):
                headers[name] = header_value(value)
