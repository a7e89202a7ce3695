"""A pytest plugin: upper bounds for the whole run and for each test, its fixtures' teardown included.

pytest-timeout interrupts a test once; a later hang in a teardown, or in the event loop's end, is unbounded.
Here a process over its bound prints the stacks of its threads and asyncio tasks, ends its children and exits.
Each of xdist's processes has the guard: a worker's end fails the test that it ran.
"""

import asyncio
import faulthandler
import gc
import inspect
import os
import threading
import time
import traceback
import types
from collections.abc import Callable, Iterator

import psutil
import pytest

SUITE_TIMEOUT_S = 1500.0
_TEST_GRACE_S = 60.0  # for a test to end that pytest-timeout has interrupted
_WORKERS_FIRST_S = 10.0  # to show their stacks before the process they report to ends
_EXIT_STATUS = 1
# Frame, and what it waits for, of a coroutine, an async generator, a generator.
_AWAITING = (("cr_frame", "cr_await"), ("ag_frame", "ag_await"), ("gi_frame", "gi_yieldfrom"))


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addini("suite_timeout", "Seconds that the whole run may take.", default=str(SUITE_TIMEOUT_S))
    parser.addini("test_grace", "Seconds of a test beyond its timeout.", default=str(_TEST_GRACE_S))


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(HangGuard(config), "hang-guard-of-this-process")


class HangGuard:
    """The guard of one process: of a plain run, or of xdist's controller or worker."""

    def __init__(self, config: pytest.Config):
        worker_input = getattr(config, "workerinput", None)
        has_workers = worker_input is None and config.getoption("numprocesses", None)
        self._stderr = os.dup(2)  # before pytest captures it
        self._at = "collection"
        self._test_timeout_s = float(config.getini("timeout")) + float(config.getini("test_grace"))
        if worker_input is None:
            self._ends_at = time.monotonic() + float(config.getini("suite_timeout"))
        else:
            self._ends_at = worker_input["suite_ends_at"]
            if self._ends_at < time.monotonic():  # in place of one that has reached it
                os._exit(_EXIT_STATUS)
        left_s = max(0.0, self._ends_at - time.monotonic()) + (_WORKERS_FIRST_S if has_workers else 0.0)
        self._timer = _timer(left_s, lambda: self._give_up("The suite has reached its time limit"))
        # For a thread that keeps the interpreter's lock, with which no timer of Python's comes to its turn.
        faulthandler.dump_traceback_later(left_s + _WORKERS_FIRST_S, exit=True, file=self._stderr)

    @pytest.hookimpl(optionalhook=True)
    def pytest_configure_node(self, node: object) -> None:
        """A worker, also one that replaces another, ends with the run."""
        node.workerinput["suite_ends_at"] = self._ends_at  # type: ignore[attr-defined]

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Iterator[None]:
        marker = item.get_closest_marker("timeout")
        self._at = item.nodeid
        more_s = float(marker.args[0]) if marker is not None else 0.0
        timer = _timer(self._test_timeout_s + more_s, lambda: self._give_up("A test does not end"))
        try:
            return (yield)
        finally:
            timer.cancel()
            self._at = f"the time after {item.nodeid}"

    def pytest_unconfigure(self) -> None:
        self._timer.cancel()
        faulthandler.cancel_dump_traceback_later()
        os.close(self._stderr)

    def _give_up(self, what: str) -> None:
        said = f"\n{what} (process {os.getpid()}, at {self._at}). It hangs here:\n\n"
        os.write(self._stderr, said.encode())
        faulthandler.dump_traceback(self._stderr, all_threads=True)
        os.write(self._stderr, _task_stacks().encode(errors="replace"))
        for child in psutil.Process().children(recursive=True):
            child.kill()
        os._exit(_EXIT_STATUS)


def _timer(seconds: float, act: Callable[[], None]) -> threading.Timer:
    timer = threading.Timer(seconds, act)
    timer.daemon = True
    timer.start()
    return timer


def _task_stacks() -> str:
    """Stacks of all asyncio tasks of all loops, the outermost coroutine first."""
    tasks = [thing for thing in gc.get_objects() if isinstance(thing, asyncio.Task) and not thing.done()]
    return "".join(f"\n{task!r}\n" + "".join(_stack(task.get_coro())) for task in tasks)


def _stack(awaited: object) -> list[str]:
    lines = [(frame, frame.f_lineno) for frame in _frames(awaited)]
    return traceback.StackSummary.extract(lines).format()


def _frames(awaited: object) -> Iterator[types.FrameType]:
    while awaited is not None:
        frame, inner = next((names for names in _AWAITING if hasattr(awaited, names[0])), ("", ""))
        if not frame:  # one step of an async generator, which does not say of which
            awaited = next(filter(inspect.isasyncgen, gc.get_referents(awaited)), None)
            continue
        if getattr(awaited, frame) is not None:
            yield getattr(awaited, frame)
        awaited = getattr(awaited, inner)
