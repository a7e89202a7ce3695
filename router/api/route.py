"""The description of one route."""

import re
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec
from aiohttp import web

from router.api.auth import Auth
from router.api.query import Parameter

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Route(msgspec.Struct, frozen=True):
    """An operation, such as `POST /generate`. Bodies are types; a tuple means any one of them."""

    operation: str
    handler: Handler
    summary: str
    takes: Any = None
    gives: Any = None
    streams: Any = None  # one event
    media_type: str = "application/json"  # of what it gives
    auth: Auth = Auth.KEY
    status: int = 200  # of success
    is_body_optional: bool = False
    may_be_unready: bool = False  # then 503
    query: tuple[Parameter, ...] = ()
    generates: bool = False  # counted, and never answered with 503

    @property
    def method(self) -> str:
        return self.operation.partition(" ")[0]

    @property
    def pattern(self) -> str:
        """The path as aiohttp matches it: `{id:.+}` also takes names with slashes."""
        return self.operation.partition(" ")[2]

    @property
    def path(self) -> str:
        return re.sub(r"{(\w+):[^}]*}", r"{\1}", self.pattern)

    @property
    def group(self) -> str:
        if self.path.startswith("/v1/"):
            return "OpenAI"
        if self.path.startswith("/ops"):
            return "Operation"
        return "Text" if self.method == "POST" else "Server"
