"""Serves the pages for browsers, and the files that they load, from `pages/` beside this module.

The pages are static and need no key: what they show comes from the routes, which ask for theirs.
"""

import hashlib
from importlib import resources
from pathlib import PurePath

import msgspec
from aiohttp import hdrs, web

from router.api.errors import Refused
from router.api.route import Handler

_MEDIA_TYPES = {
    ".css": "text/css",
    ".html": "text/html",
    ".js": "text/javascript",
    ".svg": "image/svg+xml",
}
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_HEADERS = {
    hdrs.CACHE_CONTROL: "no-cache",  # kept, and asked for again by its tag
    "Content-Security-Policy": _POLICY,
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


class _File(msgspec.Struct, frozen=True):
    content: bytes
    media_type: str
    tag: str


class Pages:
    """Handlers of the pages and of `/assets`. All files are read once, at the start."""

    def __init__(self) -> None:
        folder = resources.files("router.api").joinpath("pages")
        self._files = {
            path.name: _file(path.read_bytes(), _MEDIA_TYPES[PurePath(path.name).suffix])
            for path in folder.iterdir()
            if PurePath(path.name).suffix in _MEDIA_TYPES
        }

    def page(self, name: str) -> Handler:
        """A handler that gives the page of this file name."""

        async def handler(http: web.Request) -> web.Response:
            return _response(http, self._files[name])

        return handler

    def page_or(self, name: str, other: Handler) -> Handler:
        """The page for browsers, which ask for HTML by name; `other` for every other client."""

        async def handler(http: web.Request) -> web.StreamResponse:
            is_browser = "text/html" in http.headers.get(hdrs.ACCEPT, "")
            response = _response(http, self._files[name]) if is_browser else await other(http)
            response.headers[hdrs.VARY] = "Accept"
            return response

        return handler

    async def asset(self, http: web.Request) -> web.Response:
        """Raises `Refused` if there is no such file."""
        file = self._files.get(http.match_info["name"])
        if file is None:
            raise Refused("There is no such file.", 404, "not_found")
        return _response(http, file)


def _file(content: bytes, media_type: str) -> _File:
    return _File(content, media_type, hashlib.sha256(content).hexdigest()[:32])


def _response(http: web.Request, file: _File) -> web.Response:
    is_known = any(tag.value == file.tag for tag in http.if_none_match or ())
    if is_known:
        response = web.Response(status=304, headers=_HEADERS)
    else:
        charset = None if file.media_type.startswith("image/") else "utf-8"
        response = web.Response(
            body=file.content, content_type=file.media_type, charset=charset, headers=_HEADERS
        )
    response.etag = file.tag
    return response
