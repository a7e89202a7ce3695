"""Is Redis there? Asked every few seconds beside everything else, so that nobody has to wait to know."""

import asyncio
import logging

import redis.asyncio
from redis.exceptions import RedisError

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
