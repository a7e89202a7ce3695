"""Serves the OpenAPI document and a page that shows it. The page loads nothing from other hosts."""

from functools import cached_property
from importlib import resources

import msgspec
from aiohttp import web

from router.api.auth import Auth
from router.api.openapi import document
from router.api.route import Route

_PLACEHOLDER = "/*document*/null"


class DocsApi:
    """Handlers of `/openapi.json` and `/docs`, for `routes` and for themselves."""

    def __init__(self, routes: list[Route], version: str, keys: frozenset[Auth]):
        self._routes = [*routes, *self.routes]
        self._version = version
        self._keys = keys

    @property
    def routes(self) -> list[Route]:
        return [
            Route("GET /openapi.json", self.openapi, "This interface, as OpenAPI 3.1.", gives=dict),
            Route("GET /docs", self.page, "This interface, for people.", gives=str, media_type="text/html"),
        ]

    async def openapi(self, http: web.Request) -> web.Response:
        return web.Response(body=self._document, content_type="application/json")

    async def page(self, http: web.Request) -> web.Response:
        return web.Response(text=self._page, content_type="text/html")

    @cached_property
    def _document(self) -> bytes:
        return msgspec.json.encode(document(self._routes, self._version, self._keys))

    @cached_property
    def _page(self) -> str:
        template = resources.files("router.api").joinpath("docs.html").read_text(encoding="utf-8")
        # A closing tag inside a script would end it.
        return template.replace(_PLACEHOLDER, self._document.decode().replace("</", "<\\/"))
