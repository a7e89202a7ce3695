"""Writes a struct as a JSON response."""

from collections.abc import Mapping
from typing import Any

import msgspec
from aiohttp import web

_encode = msgspec.json.Encoder().encode


def json_response(body: Any, headers: Mapping[str, str] | None = None, status: int = 200) -> web.Response:
    return web.Response(body=_encode(body), headers=headers, status=status, content_type="application/json")
