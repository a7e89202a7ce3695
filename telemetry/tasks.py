"""How asyncio tasks are begun and ended by their owners: no failure is unseen, no wait unbounded."""

import asyncio
import logging
from collections.abc import Coroutine, Iterable
from typing import Any, TypeVar

log = logging.getLogger(__name__)

END_TIMEOUT_S = 10.0  # a task that was cancelled and still runs then is left behind

_T = TypeVar("_T")


def begin(work: Coroutine[Any, Any, _T], name: str) -> asyncio.Task[_T]:
    """A task whose failure is logged when it happens, since nobody may be waiting for it."""
    task = asyncio.create_task(work, name=name)
    task.add_done_callback(_log_failure)
    return task


async def cancel(*tasks: asyncio.Task[Any]) -> None:
    """Cancel tasks and wait for their ends.

    To await a cancelled task in `suppress(CancelledError)` would swallow the caller's own cancellation too.
    """
    for task in tasks:
        task.cancel()
    await ended(tasks, END_TIMEOUT_S)


async def ended(tasks: Iterable[asyncio.Task[Any]], timeout_s: float) -> bool:
    """Wait for the ends of tasks, whatever they are; False if some have not come in time."""
    tasks = list(tasks)
    if not tasks:
        return True
    done, late = await asyncio.wait(tasks, timeout=timeout_s)
    for task in done:
        if not task.cancelled():
            task.exception()  # has been seen
    for task in late:
        log.error("%s has not ended in %.0f s: %s", task.get_name(), timeout_s, task.get_stack(limit=1))
    return not late


def _log_failure(task: asyncio.Task[Any]) -> None:
    if not task.cancelled() and (error := task.exception()) is not None:
        log.error("%s failed.", task.get_name(), exc_info=error)
