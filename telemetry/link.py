"""A connection to one Redis, or to the node of a cluster that has our keys, which share one slot.

Every request is one pipeline. A failure returns None, and is logged once.
"""

import logging
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import redis.asyncio
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as NotConnected
from redis.exceptions import MovedError, RedisError

log = logging.getLogger(__name__)

PATIENCE_S = 1.0  # timeout of one request
_MAX_MOVES = 3  # redirections followed per request
_IS_WRITTEN = "equal or smaller"  # in Redis' error for an entry that the stream already has

Pipeline = redis.asyncio.client.Pipeline


def check_url(url: str) -> None:
    """Raises `ValueError` for a malformed URL; the message omits it, since it may hold a password."""
    try:
        parts = urlsplit(url)
        number = parts.path.strip("/")
        is_address = bool(parts.path) if parts.scheme == "unix" else number.isdecimal() or not number
        pool = _connect(url).connection_pool
        pool.make_connection()  # type: ignore[no-untyped-call]  # that connects to nothing yet
    except (ValueError, TypeError, RedisError):
        is_address = False
    if not is_address or not url.isprintable():
        raise ValueError(
            "is no address of a Redis: it must be redis://USER:PASSWORD@HOST:PORT/NUMBER, of which all but "
            "the host may be left out, or unix:///PATH; in a password, / and @ are written %2F and %40."
        )


class Link:
    """A connection to `url`; with None there is no Redis, and every request returns None."""

    def __init__(self, url: str | None):
        """Raises `ValueError` for a malformed URL."""
        self.trouble = None if url is not None else "there is none"  # why the last request failed
        self.url = url
        self.node = url  # the node of a cluster that has our keys
        self.client = _connect(url) if url is not None else None

    async def ask(self, fill: Callable[[Pipeline], object]) -> list[Any] | None:
        """Run the pipeline that `fill` fills; returns its answers, None if Redis is away or refuses."""
        if self.client is None:
            return None
        for _ in range(_MAX_MOVES):
            try:
                return await _answers(self.client, fill)
            except MovedError as moved:
                error: Exception = moved
                await self._turn_to(_at(self.url, moved))
            except (RedisError, OSError) as other:
                error = other
                await self._turn_to(self.url)  # another node may have replaced that one
                break
        self._note_trouble(error)
        return None

    def note_success(self) -> None:
        """Note that Redis answered."""
        if self.trouble is not None:
            log.warning("Redis is back.")
            self.trouble = None

    async def close(self) -> None:
        """Close the connection. Idempotent."""
        if self.client is not None:
            await self.client.aclose()

    async def _turn_to(self, node: str | None) -> None:
        if node is not None and node != self.node:
            await self.close()
            self.node, self.client = node, _connect(node)

    def _note_trouble(self, error: Exception) -> None:
        if self.trouble is None:
            log.warning("Redis is of no use now: %s. Telemetry waits in memory.", str(error).rstrip("."))
        self.trouble = str(error)


def _connect(url: str) -> redis.asyncio.Redis:
    """A client with one immediate retry, since an idle connection may have been cut."""
    again = Retry(NoBackoff(), 1, supported_errors=(NotConnected,))
    return redis.asyncio.from_url(
        url, protocol=2, socket_timeout=PATIENCE_S, socket_connect_timeout=PATIENCE_S, retry=again
    )


async def _answers(client: redis.asyncio.Redis, fill: Callable[[Pipeline], object]) -> list[Any]:
    """The answers of a pipeline. Raises the first error among them."""
    async with client.pipeline(transaction=False) as pipe:
        fill(pipe)
        answers = await pipe.execute(raise_on_error=False)
    for answer in answers:
        if isinstance(answer, RedisError) and _IS_WRITTEN not in str(answer):
            raise answer
    return answers


def _at(url: str | None, moved: MovedError) -> str:
    """The URL at another node, with the same credentials."""
    parts = urlsplit(url or "")
    user, _, _ = parts.netloc.rpartition("@")
    host = f"[{moved.host}]" if ":" in moved.host else moved.host
    netloc = f"{user}@{host}:{moved.port}" if user else f"{host}:{moved.port}"
    return urlunsplit(parts._replace(netloc=netloc))
