"""Starts and ends asyncio tasks: failures are logged, waits are bounded."""

import asyncio
import logging
from collections.abc import Coroutine, Iterable
from typing import Any, TypeVar

log = logging.getLogger(__name__)

END_TIMEOUT_S = 10.0  # after which a cancelled task that still runs is abandoned

_T = TypeVar("_T")


def begin(work: Coroutine[Any, Any, _T], name: str) -> asyncio.Task[_T]:
    """Start a task whose failure is logged at once, since it may not be awaited."""
    task = asyncio.create_task(work, name=name)
    task.add_done_callback(_log_failure)
    return task


async def cancel(*tasks: asyncio.Task[Any]) -> None:
    """Cancel tasks and wait for their ends.

    Awaiting a cancelled task in `suppress(CancelledError)` would swallow the caller's own cancellation too.
    """
    for task in tasks:
        task.cancel()
    await ended(tasks, END_TIMEOUT_S)


async def ended(tasks: Iterable[asyncio.Task[Any]], timeout_s: float) -> bool:
    """Wait for tasks to end in any way; False on timeout."""
    tasks = list(tasks)
    if not tasks:
        return True
    done, late = await asyncio.wait(tasks, timeout=timeout_s)
    for task in done:
        if not task.cancelled():
            task.exception()  # marks the exception as retrieved
    for task in late:
        log.error("%s has not ended in %.0f s: %s", task.get_name(), timeout_s, task.get_stack(limit=1))
    return not late


def _log_failure(task: asyncio.Task[Any]) -> None:
    if not task.cancelled() and (error := task.exception()) is not None:
        log.error("%s failed.", task.get_name(), exc_info=error)
