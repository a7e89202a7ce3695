"""Writes a struct as a JSON response."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import msgspec
from aiohttp import web

_encode = msgspec.json.Encoder().encode


def json_response(body: Any, headers: Mapping[str, str] | None = None, status: int = 200) -> web.Response:
    return web.Response(body=_encode(body), headers=headers, status=status, content_type="application/json")


class SharedAnswer:
    """A response that costs something to make, made once for all who ask within `shared_s`."""

    def __init__(self, make: Callable[[], Awaitable[Any]], shared_s: float):
        self._make = make
        self._shared_s = shared_s
        self._until = float("-inf")  # time of the loop
        self._body = b""
        self._making = asyncio.Lock()

    async def response(self) -> web.Response:
        async with self._making:
            now = asyncio.get_running_loop().time()
            if now >= self._until:
                self._body = _encode(await self._make())
                self._until = now + self._shared_s
            return web.Response(body=self._body, content_type="application/json")
