"""Keys, and what browsers may do. Keys are compared in constant time."""

import enum
import hmac
import re
from collections.abc import Sequence
from urllib.parse import urlsplit

from aiohttp import hdrs, web

from router.api.errors import Refused

_HEADER_NAME = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]{1,64}")  # RFC 9110's tokens
_MAX_HEADER_NAMES = 64


class Guard(enum.Enum):
    """What a route asks for, if the server has such a key."""

    OPEN = "open"
    KEY = "api key"
    ADMIN = "admin key"


class Keys:
    """The keys of a server. Without an admin key, operation asks for the API key."""

    def __init__(self, api_key: str | None, admin_key: str | None):
        self._wanted = {Guard.OPEN: None, Guard.KEY: api_key, Guard.ADMIN: admin_key or api_key}

    def check(self, http: web.Request, guard: Guard) -> None:
        """Raises `Refused`: 401 for a wrong key, 403 for operation from another site's page."""
        if guard is Guard.ADMIN and _is_cross_site(http):
            raise Refused("Operation is not open to web pages of other sites.", 403, "forbidden")
        wanted = self._wanted[guard]
        if wanted is None:
            return
        scheme, _, given = http.headers.get(hdrs.AUTHORIZATION, "").partition(" ")
        fits = hmac.compare_digest(given.strip().encode(errors="surrogateescape"), wanted.encode())
        if scheme.lower() != "bearer" or not fits:
            raise Refused(
                f"This route needs `Authorization: Bearer` with the {guard.value}.", 401, "unauthorized"
            )


def _is_cross_site(http: web.Request) -> bool:
    """A browser names the page's origin: without keys, all that tells its calls from an operator's."""
    origin = http.headers.get(hdrs.ORIGIN)
    return origin is not None and urlsplit(origin).netloc != http.host


def _header_names(http: web.Request) -> str:
    """Those that the page wants to send: clients have headers of their own, and none but the key counts."""
    wanted = http.headers.get(hdrs.ACCESS_CONTROL_REQUEST_HEADERS, "")
    names = [name for name in map(str.strip, wanted.split(",")) if _HEADER_NAME.fullmatch(name)]
    return ", ".join(names[:_MAX_HEADER_NAMES]) or "Authorization, Content-Type, X-Request-Id"


class Cors:
    """Which web pages may call: those of the given origins, or every one if none are given."""

    def __init__(self, origins: Sequence[str]):
        self._origins = frozenset(origins)
        self._is_open = not origins or "*" in self._origins

    def headers(self, http: web.Request) -> dict[str, str]:
        """For the answer to a call from a page; none if the page may not call."""
        origin = http.headers.get(hdrs.ORIGIN)
        if origin is None:
            return {}
        if self._is_open:
            return {hdrs.ACCESS_CONTROL_ALLOW_ORIGIN: "*", hdrs.ACCESS_CONTROL_EXPOSE_HEADERS: "*"}
        if origin not in self._origins:
            return {}
        return {
            hdrs.ACCESS_CONTROL_ALLOW_ORIGIN: origin,
            hdrs.ACCESS_CONTROL_EXPOSE_HEADERS: "*",
            hdrs.VARY: "Origin",
        }

    def preflight(self, http: web.Request) -> web.Response | None:
        """The answer to a browser that asks whether it may; None for any other call."""
        if http.method != "OPTIONS" or hdrs.ACCESS_CONTROL_REQUEST_METHOD not in http.headers:
            return None
        headers = {
            hdrs.ACCESS_CONTROL_ALLOW_METHODS: "GET, POST",
            hdrs.ACCESS_CONTROL_ALLOW_HEADERS: _header_names(http),
            hdrs.ACCESS_CONTROL_MAX_AGE: "600",
        }
        return web.Response(status=204, headers=headers)
