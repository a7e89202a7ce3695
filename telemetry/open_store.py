"""Opens the telemetry store of a server: in the given Redis, else in an embedded one."""

import contextlib
import logging
from collections.abc import AsyncIterator

from telemetry.embedded import EmbeddedRedis, find_server
from telemetry.store import Store

log = logging.getLogger(__name__)


@contextlib.asynccontextmanager
async def open_store(url: str | None, deployment: str, router: str) -> AsyncIterator[Store]:
    """A store until the context ends; `router` is this router's name. `ValueError`: a malformed URL.

    Without a working Redis it only warns: nothing but telemetry needs Redis.
    """
    async with contextlib.AsyncExitStack() as stack:
        store = Store(url or await _embedded_url(stack), deployment, router)
        stack.push_async_callback(store.stop)
        await store.start()
        yield store


async def _embedded_url(stack: contextlib.AsyncExitStack) -> str | None:
    binary = find_server()
    if binary is None:
        log.warning("No redis-server was found: serving without telemetry that lasts.")
        return None
    try:
        server = EmbeddedRedis(binary)
        stack.push_async_callback(server.stop)
        await server.start()
    except OSError as error:
        log.warning("Serving without telemetry that lasts: %s", error)
        return None
    return server.url
