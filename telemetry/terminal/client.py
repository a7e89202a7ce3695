"""Calls a server's `/ops`: JSON in and out, one connection a call. It follows no redirect, uses no proxy."""

import argparse
import getpass
import http.client
import os
import re
import socket
import ssl
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import msgspec

DEFAULT_URL = "http://localhost:3000"
TIMEOUT_S = 10.0
_MAX_ERROR = 500  # characters of a body that is not ours


class Unreachable(Exception):
    """No server answered. The message is one sentence."""


class WrongAddress(ValueError):
    """The URL or a key file is of no use. The message is one sentence."""


class Answer(msgspec.Struct, frozen=True):
    """A server's answer."""

    status: int
    body: Any  # decoded JSON; of anything else its text
    raw: bytes

    @property
    def is_success(self) -> bool:
        return 200 <= self.status < 300

    @property
    def is_forbidden(self) -> bool:
        return self.status in (401, 403)

    @property
    def error(self) -> str:
        """The server's sentence on why not."""
        if isinstance(self.body, dict) and isinstance(self.body.get("error"), str):
            return str(self.body["error"])
        return f"HTTP {self.status}: {str(self.body)[:_MAX_ERROR]}"


class Client:
    """A client of the server at `url`. `key` is the admin key, else the API key."""

    def __init__(self, url: str, key: str | None = None):
        """Raises `WrongAddress`."""
        self.url = url.rstrip("/")
        parts = urlsplit(self.url)
        try:
            self._host, self._port = parts.hostname, parts.port
        except ValueError:
            self._host = None
        if parts.scheme not in ("http", "https") or not self._host:
            raise WrongAddress(f"{url!r} is no address of a server, such as {DEFAULT_URL}.")
        self._is_secure = parts.scheme == "https"
        self._path = parts.path
        self._headers = {"x-helios-operator": who_am_i(), "content-type": "application/json"}
        if key is not None:
            self._headers["authorization"] = f"Bearer {key}"

    def get(self, path: str) -> Answer:
        """Raises `Unreachable`."""
        return self._call("GET", path, None)

    def post(self, path: str, body: object) -> Answer:
        """Raises `Unreachable`."""
        return self._call("POST", path, msgspec.json.encode(body))

    def _call(self, method: str, path: str, body: bytes | None) -> Answer:
        connection = self._connection()
        try:
            connection.request(method, self._path + path, body, self._headers)
            response = connection.getresponse()
            raw, status = response.read(), response.status
        except (OSError, http.client.HTTPException) as error:
            why = str(error) or type(error).__name__
            raise Unreachable(f"No server answers at {self.url}: {why}.") from None
        finally:
            connection.close()
        try:
            return Answer(status, msgspec.json.decode(raw), raw)
        except msgspec.MsgspecError:
            return Answer(status, raw.decode(errors="replace"), raw)

    def _connection(self) -> http.client.HTTPConnection:
        assert self._host is not None
        if self._is_secure:
            context = ssl.create_default_context()
            return http.client.HTTPSConnection(self._host, self._port, timeout=TIMEOUT_S, context=context)
        return http.client.HTTPConnection(self._host, self._port, timeout=TIMEOUT_S)


def who_am_i() -> str:
    """USER@HOST, in the letters that the audit log takes."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a container's user without a name
        user = f"uid-{os.getuid()}"
    parts = (
        re.sub(r"[^\w.+-]", "-", part, flags=re.ASCII)[:64] or "-" for part in (user, socket.gethostname())
    )
    return "@".join(parts)


def add_server_flags(parser: argparse.ArgumentParser, default: str | None = None) -> None:
    """Flags of the address and the keys. Each may be in the environment instead, as HELIOS_URL and so on."""
    group = parser.add_argument_group("Server", argument_default=default)
    group.add_argument("--url", help=f"address of the router [HELIOS_URL, else {DEFAULT_URL}]")
    group.add_argument("--admin-key", metavar="KEY", help="as a flag it shows in `ps` [HELIOS_ADMIN_KEY]")
    group.add_argument("--admin-key-file", metavar="FILE", help="file with that key [HELIOS_ADMIN_KEY_FILE]")
    group.add_argument("--api-key", metavar="KEY", help="for a server without an admin key [HELIOS_API_KEY]")
    group.add_argument("--api-key-file", metavar="FILE", help="file with that key [HELIOS_API_KEY_FILE]")


def client_of(flags: argparse.Namespace) -> Client:
    """The client that flags, else the environment, describe. Raises `WrongAddress`."""
    return Client(_setting(flags, "url") or DEFAULT_URL, _key(flags, "admin_key") or _key(flags, "api_key"))


def _key(flags: argparse.Namespace, name: str) -> str | None:
    key, file = _setting(flags, name), _setting(flags, f"{name}_file")
    if key or not file:
        return key or None
    try:
        key = Path(file).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeError) as error:
        raise WrongAddress(f"The key in {file} cannot be read: {error}.") from None
    if not key:
        raise WrongAddress(f"There is no key in {file}.")
    return key


def _setting(flags: argparse.Namespace, name: str) -> str | None:
    given = getattr(flags, name)
    return given if given is not None else os.environ.get(f"HELIOS_{name.upper()}")
