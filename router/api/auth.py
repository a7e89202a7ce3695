"""Keys, who may operate without them, and what browsers may do. Keys are compared in constant time."""

import enum
import hmac
import ipaddress
import re
import socket
from collections.abc import Callable, Sequence
from urllib.parse import urlsplit

from aiohttp import hdrs, web

from router.api.errors import Refused
from router.settings.config import Config

Address = ipaddress.IPv4Address | ipaddress.IPv6Address

_FETCH_SITE = "Sec-Fetch-Site"  # what browsers say of a call: whose page it comes from
_OWN_SITE = ("same-origin", "none")  # "none": a person's, who typed the address
_FORWARDED = (hdrs.FORWARDED, hdrs.X_FORWARDED_FOR, "X-Real-IP", hdrs.VIA)  # set by proxies

_HEADER_NAME = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]{1,64}")  # RFC 9110's tokens
_MAX_HEADER_NAMES = 64


class Auth(enum.Enum):
    """The kind of key that a route requires, if the server has one."""

    OPEN = "open"
    KEY = "api key"
    ADMIN = "admin key"


class Keys:
    """The server's keys, and the access rules for routes without one.

    Without an admin key, `/ops` asks for the API key, and takes commands from its own machine only.
    """

    def __init__(self, api_key: str | None, admin_key: str | None, hostname: str = ""):
        self._wanted = {Auth.OPEN: None, Auth.KEY: api_key, Auth.ADMIN: admin_key or api_key}
        self._has_admin_key = admin_key is not None
        self._names = {"localhost", socket.gethostname().lower(), hostname.lower()}

    @property
    def asked_for(self) -> frozenset[Auth]:
        """The kinds of routes that want a key."""
        return frozenset(auth for auth, key in self._wanted.items() if key is not None)

    def check(self, http: web.Request, auth: Auth) -> None:
        """Raises `Refused`: 401 for a wrong key, 403 for a caller that may not operate with any key."""
        if auth is Auth.ADMIN and _is_cross_site(http):
            raise Refused("Operation is not open to web pages of other sites.", 403, "forbidden")
        wanted = self._wanted[auth]
        if wanted is not None:
            _check_key(http, wanted, auth)
        elif auth is Auth.ADMIN and not self._is_ours(http.headers.get(hdrs.HOST)):
            message = "This server has no such name: call it by its address, or give it an admin key."
            raise Refused(message, 403, "forbidden")
        if auth is Auth.ADMIN and not (self._has_admin_key or _only_looks(http) or _is_local(http)):
            message = "Without an admin key, commands are taken from the server's own machine only."
            raise Refused(message, 403, "forbidden")

    def _is_ours(self, host: str | None) -> bool:
        """The Host header names this server. A rebound DNS name, by which a page could reach it, does not."""
        if host is None:
            return True  # no browser
        try:
            name = (urlsplit(f"//{host}").hostname or "").removesuffix(".")
        except ValueError:
            return False
        return name in self._names or name.endswith(".localhost") or _is_address(name)


def who_may(config: Config) -> str:
    """One line for the operator that says which routes are open to whom."""
    generation = "whoever has the API key" if config.api_key else "everyone who reaches it"
    looks = "whoever has the admin key" if config.admin_key else generation
    commands = looks if config.admin_key else f"this machine{' with that key' if config.api_key else ''}"
    return (
        f"Open: generation to {generation}, a look at /ops to {looks}, commands to {commands}, "
        "health and metrics to everyone."
    )


def _check_key(http: web.Request, wanted: str, auth: Auth) -> None:
    scheme, _, given = http.headers.get(hdrs.AUTHORIZATION, "").partition(" ")
    fits = hmac.compare_digest(given.strip().encode(errors="surrogateescape"), wanted.encode())
    if scheme.lower() != "bearer" or not fits:
        message = f"This route needs `Authorization: Bearer` with the {auth.value}."
        raise Refused(message, 401, "unauthorized")


def _is_cross_site(http: web.Request) -> bool:
    """The call comes from a page of another origin. Without keys nothing else tells it from an operator's."""
    origin = http.headers.get(hdrs.ORIGIN)
    if origin is None:  # as where something in the browser takes it away
        return not _only_looks(http) and http.headers.get(_FETCH_SITE, "none") not in _OWN_SITE
    try:
        return urlsplit(origin).netloc != http.headers.get(hdrs.HOST)
    except ValueError:
        return True


def _only_looks(http: web.Request) -> bool:
    return http.method in ("GET", "HEAD")


def _is_local(http: web.Request) -> bool:
    """The call comes from this machine, not through a proxy on it."""
    is_forwarded = any(name in http.headers for name in _FORWARDED)
    return not is_forwarded and _is_address(http.remote or "", lambda address: address.is_loopback)


def _is_address(text: str, is_fit: Callable[[Address], bool] = lambda _: True) -> bool:
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return False
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return is_fit(mapped or address)


def _header_names(http: web.Request) -> str:
    """The header names that a page asks to send. All are allowed: only the key decides."""
    wanted = http.headers.get(hdrs.ACCESS_CONTROL_REQUEST_HEADERS, "")
    names = [name for name in map(str.strip, wanted.split(",")) if _HEADER_NAME.fullmatch(name)]
    return ", ".join(names[:_MAX_HEADER_NAMES]) or "Authorization, Content-Type, X-Request-Id"


class Cors:
    """Which web pages may call: those of the given origins, or every one if none are given."""

    def __init__(self, origins: Sequence[str]):
        self._origins = frozenset(origins)
        self._is_open = not origins or "*" in self._origins

    def headers(self, http: web.Request) -> dict[str, str]:
        """CORS headers for the answer to a page; none if the page may not call."""
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
