"""Grammars of constraints, compiled off the event loop in other processes, and cached."""

import asyncio
import time
from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor

from router.api.constraints import Wanted, refusal_of
from router.grammar.checker import grammar_of
from router.grammar.constraint import Constraint, GrammarError
from router.grammar.observer import GrammarObserver
from router.processes import CannotStart, Processes
from router.scheduling.request import GenerationFailed

_NUM_THREADS = 2
_MAX_WAITING = 128  # more than honest ones of 10 to 20 ms take in `MAX_WAIT_S`
MAX_WAIT_S = 3.0  # for a thread: hostile ones ahead take 0.3 s each
MAX_BYTES = 8 << 20  # of the cache
_RETRY_S = 1


class Grammars:
    """A bounded cache of grammars, and of the reasons why constraints have none. For one event loop."""

    def __init__(self, processes: Processes, observer: GrammarObserver):
        self._processes = processes
        self.observer = observer
        self._threads = ThreadPoolExecutor(_NUM_THREADS, thread_name_prefix="grammars")
        self._known: OrderedDict[Constraint, str | GrammarError] = OrderedDict()
        self._num_bytes = 0
        self._under_way: dict[Constraint, asyncio.Future[str | GrammarError]] = {}

    async def of(self, wanted: Wanted) -> str:
        """The text of the constraint's grammar.

        Raises `Refusal` when there is none, and `GenerationFailed` 429 when too many are being compiled.
        """
        constraint = wanted.constraint
        if constraint in self._known:
            self.observer.on_cache_hit()
            self._known.move_to_end(constraint)
            made = self._known[constraint]
        elif constraint in self._under_way:
            self.observer.on_cache_hit()
            made = await asyncio.shield(self._under_way[constraint])
        else:
            made = await asyncio.shield(self._begin(constraint))
        if isinstance(made, GrammarError):
            raise refusal_of(made, wanted.field)
        return made

    def close(self) -> None:
        """Compile nothing more."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _begin(self, constraint: Constraint) -> "asyncio.Future[str | GrammarError]":
        """Compile, even if the client goes away: others may wait for the same grammar."""
        if len(self._under_way) >= _MAX_WAITING:
            raise _busy()
        job = asyncio.ensure_future(self._compile(constraint))
        self._under_way[constraint] = job
        job.add_done_callback(lambda done: self._end(constraint, done))
        return job

    async def _compile(self, constraint: Constraint) -> str | GrammarError:
        loop, started = asyncio.get_running_loop(), time.perf_counter()
        begin_by = time.monotonic() + MAX_WAIT_S
        try:
            return await loop.run_in_executor(self._threads, self._compile_by, begin_by, constraint)
        except GrammarError as error:
            return error
        except (TimeoutError, CannotStart):
            raise _busy() from None
        finally:
            self.observer.on_compiled(time.perf_counter() - started)

    def _compile_by(self, begin_by: float, constraint: Constraint) -> str:
        if time.monotonic() > begin_by:
            raise TimeoutError
        return grammar_of(self._processes, constraint)

    def _end(self, constraint: Constraint, job: "asyncio.Future[str | GrammarError]") -> None:
        del self._under_way[constraint]
        if job.cancelled() or job.exception() is not None:
            return
        self._known[constraint] = job.result()
        self._num_bytes += _size(constraint, job.result())
        while self._num_bytes > MAX_BYTES:
            self._num_bytes -= _size(*self._known.popitem(last=False))


def _size(constraint: Constraint, made: str | GrammarError) -> int:
    """Bytes of a cache entry, roughly."""
    return 1000 + len(constraint.source) + (len(made) if isinstance(made, str) else 0)


def _busy() -> GenerationFailed:
    error = "The server is busy: there is no time to compile a grammar."
    return GenerationFailed(error, "overloaded", 429, _RETRY_S)
