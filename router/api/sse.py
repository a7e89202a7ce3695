"""Server-sent events of one or several requests; news that came together go out in one write."""

import asyncio
import contextlib
import logging
from collections.abc import AsyncGenerator, Callable
from typing import Protocol

from aiohttp import web

from router.api.arrival import FAILURE
from router.scheduling.request import Finished, GenerationFailed, Request
from router.text.tokenizer import Token
from telemetry import tasks

log = logging.getLogger(__name__)

Opening = Callable[[], tuple["Format", dict[str, str]]]
Batch = tuple[int, list[Token | Finished]]  # which of the requests, and its news

_HEADERS = {"Content-Type": "text/event-stream", "Cache-Control": "no-cache", "X-Accel-Buffering": "no"}


class Format(Protocol):
    """Encodes a dialect's events as bytes."""

    def events(self, index: int, news: list[Token | Finished]) -> bytes:
        """One event per token; `index` says which request they are of."""

    def end(self) -> bytes:
        """The events after the last token of all requests."""

    def failure(self, error: GenerationFailed) -> bytes:
        """The last event of a stream that failed."""


async def stream(http: web.Request, requests: list[Request], opening: Opening) -> web.StreamResponse:
    """Answer with the events of all `requests`. `opening` gives format and headers once one has begun.

    Raises `GenerationFailed` until the first token is there, so that a refusal has its true status; later
    failures become an event.
    """
    async with contextlib.aclosing(_one(requests[0]) if len(requests) == 1 else _many(requests)) as batches:
        index, news = await anext(batches)
        shape, headers = opening()
        response = web.StreamResponse(headers=_HEADERS | headers)
        try:
            await response.prepare(http)
            await response.write(shape.events(index, news))
            async for index, news in batches:
                await response.write(shape.events(index, news))
            await response.write(shape.end())
        except ConnectionError:
            http[FAILURE] = "dropped"
        except Exception as error:
            failure = _failure_of(error)
            http[FAILURE] = failure.kind
            with contextlib.suppress(ConnectionError):
                await response.write(shape.failure(failure))
    return response


def _failure_of(error: Exception) -> GenerationFailed:
    if isinstance(error, GenerationFailed):
        return error
    log.error("a stream failed", exc_info=error)
    return GenerationFailed("The server failed; its log says more.", "incomplete_generation", 500)


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
