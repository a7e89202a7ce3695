"""Server-sent events of one or several requests; news that came together go out in one write."""

import asyncio
import contextlib
import logging
from collections.abc import AsyncGenerator, Callable
from typing import Protocol

from aiohttp import web

from router.api.arrival import FAILURE
from router.api.errors import internal_error
from router.scheduling.request import Finished, GenerationFailed, Request
from router.text.tokenizer import Token
from telemetry import tasks

log = logging.getLogger(__name__)

Opening = Callable[[], tuple["Format", dict[str, str]]]
Batch = tuple[int, list[Token | Finished]]  # which of the requests, and its news

_HEADERS = {"Content-Type": "text/event-stream", "Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
_COMMENT = b": keep-alive\n\n"


class Format(Protocol):
    """Encodes a dialect's events as bytes."""

    def events(self, index: int, news: list[Token | Finished]) -> bytes:
        """One event per token; `index` says which request they are of."""

    def end(self) -> bytes:
        """The events after the last token of all requests."""

    def failure(self, error: GenerationFailed) -> bytes:
        """The last event of a stream that failed."""


async def stream(
    http: web.Request, requests: list[Request], opening: Opening, keep_alive_s: float
) -> web.StreamResponse:
    """Answer with the events of all `requests`. `opening` gives format and headers, which tell most once one
    has begun.

    Raises what goes wrong until something is written, so that a refusal has its true status; later failures
    become an event. What takes longer than `keep_alive_s` is bridged with comments, which clients ignore:
    proxies close connections on which nothing is sent.
    """
    answer, shape = _Answer(http, opening, keep_alive_s), None
    async with contextlib.aclosing(_one(requests[0]) if len(requests) == 1 else _many(requests)) as batches:
        try:
            async for index, news in batches:
                if shape is None:
                    shape, answer.headers = opening()
                await answer.write(shape.events(index, news))
            if shape is not None:
                await answer.write(shape.end())
        except ConnectionError:
            http[FAILURE] = "dropped"
        except Exception as error:
            if not answer.has_begun:
                raise
            failure = _failure_of(error)
            http[FAILURE] = failure.kind
            with contextlib.suppress(ConnectionError):
                await answer.write((shape or opening()[0]).failure(failure))
        finally:
            await answer.close()
    return answer.response


class _Answer:
    """A response that begins with what is written first, a comment where an event takes long."""

    def __init__(self, http: web.Request, opening: Opening, keep_alive_s: float):
        self.headers: dict[str, str] | None = None
        self.response = web.StreamResponse(headers=_HEADERS)
        self.has_begun = False
        self._http = http
        self._opening = opening
        self._keep_alive_s = keep_alive_s
        self._beginning = asyncio.Lock()
        self._loop = asyncio.get_running_loop()
        self._written_at = self._loop.time()
        self._timer = self._loop.call_later(keep_alive_s, self._check_silence)
        self._comment: asyncio.Task[None] | None = None

    async def write(self, data: bytes) -> None:
        """Raises `ConnectionError` when the client has gone."""
        if not self.has_begun:
            await self._begin()
        await self.response.write(data)
        self._written_at = self._loop.time()

    async def close(self) -> None:
        """No more comments. Idempotent."""
        self._timer.cancel()
        if self._comment is not None:
            await tasks.cancel(self._comment)

    async def _begin(self) -> None:
        async with self._beginning:
            if self.has_begun:
                return
            self.response.headers.update(self._opening()[1] if self.headers is None else self.headers)
            await self.response.prepare(self._http)
            self.has_begun = True

    def _check_silence(self) -> None:
        silent_s = self._loop.time() - self._written_at
        is_due = silent_s >= self._keep_alive_s
        if is_due and (self._comment is None or self._comment.done()):
            self._comment = tasks.begin(self._keep_alive(), "Keeping a stream alive")
        next_s = self._keep_alive_s - (0 if is_due else silent_s)
        self._timer = self._loop.call_later(next_s, self._check_silence)

    async def _keep_alive(self) -> None:
        with contextlib.suppress(ConnectionError):  # who writes next finds out
            await self.write(_COMMENT)


def _failure_of(error: Exception) -> GenerationFailed:
    if isinstance(error, GenerationFailed):
        return error
    log.error("a stream failed", exc_info=error)
    return internal_error()


async def _one(request: Request) -> AsyncGenerator[Batch]:
    """News of a request until it has finished. Raises `GenerationFailed`."""
    while True:
        news = await request.take()
        yield 0, news
        if isinstance(news[-1], Finished):
            return


async def _many(requests: list[Request]) -> AsyncGenerator[Batch]:
    """News of all requests as they come, until all have finished. Raises the first `GenerationFailed`."""
    queue: asyncio.Queue[Batch | Exception] = asyncio.Queue()
    pumps = [asyncio.create_task(_pump(index, request, queue)) for index, request in enumerate(requests)]
    try:
        num_running = len(requests)
        while num_running:
            batch = await queue.get()
            if isinstance(batch, Exception):
                raise batch
            num_running -= isinstance(batch[1][-1], Finished)
            yield batch
    finally:
        await tasks.cancel(*pumps)


async def _pump(index: int, request: Request, queue: asyncio.Queue[Batch | Exception]) -> None:
    try:
        async for _, news in _one(request):
            queue.put_nowait((index, news))
    except Exception as error:
        queue.put_nowait(error)
