"""Is Redis there? Asked every few seconds beside everything else, so that nobody has to wait to know."""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable

import redis.asyncio
from redis.exceptions import RedisError

from telemetry.embedded import EmbeddedRedis, find_server

log = logging.getLogger(__name__)

INTERVAL_S = 2.0
PATIENCE_S = 1.0


class RedisWatch:
    """Pings one Redis at a fixed rate from `start` to `stop`. `is_ok` is the last answer."""

    def __init__(self, url: str, interval_s: float = INTERVAL_S):
        """Raises `ValueError` for an address that cannot be one of a Redis."""
        self.is_ok = False
        self._interval_s = interval_s
        self._client = redis.asyncio.from_url(
            url, socket_timeout=PATIENCE_S, socket_connect_timeout=PATIENCE_S
        )
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Return after the first answer, or the lack of one."""
        self.is_ok = await self._answers()
        if not self.is_ok:
            log.warning("Redis does not answer: serving without telemetry that lasts until it does.")
        self._task = asyncio.create_task(self._keep_asking())

    async def stop(self) -> None:
        """Idempotent."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            self._task = None
        await self._client.aclose()

    async def _keep_asking(self) -> None:
        loop = asyncio.get_running_loop()
        due = loop.time()
        while True:
            due = max(due + self._interval_s, loop.time())
            await asyncio.sleep(due - loop.time())
            self._note(await self._answers())

    def _note(self, is_ok: bool) -> None:
        if is_ok != self.is_ok:
            log.warning("Redis answers again." if is_ok else "Redis does not answer any more.")
        self.is_ok = is_ok

    async def _answers(self) -> bool:
        try:
            return bool(await self._client.ping())
        except (RedisError, OSError):
            return False


@contextlib.asynccontextmanager
async def watching(url: str | None) -> AsyncIterator[Callable[[], bool]]:
    """Over the Redis at `url`; None: over an embedded one that lives as long. Yields whether it answers.

    That there is none, or that it does not start, is a warning: nothing but telemetry needs it.
    """
    async with contextlib.AsyncExitStack() as stack:
        address = url or await _embedded_url(stack)
        if address is None:
            yield lambda: False
            return
        watch = RedisWatch(address)
        stack.push_async_callback(watch.stop)
        await watch.start()
        yield lambda: watch.is_ok


async def _embedded_url(stack: contextlib.AsyncExitStack) -> str | None:
    binary = find_server()
    if binary is None:
        log.warning("No redis-server was found: serving without telemetry that lasts.")
        return None
    server = EmbeddedRedis(binary)
    stack.push_async_callback(server.stop)
    try:
        await server.start()
    except OSError as error:
        log.warning("Serving without telemetry that lasts: %s", error)
        return None
    return server.url
