"""Encodes text into tokens on threads, within a budget of characters.

Short, long and very long texts have lanes of their own: none waits behind a longer kind, and a full lane
refuses instead of queueing without limit. Memory that the tokenizer took for a very long text is given back.
"""

import asyncio
import ctypes
import math
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

from router.scheduling.request import GenerationFailed

T = TypeVar("T")

SHORT_CHARACTERS = 2000  # encoded in about a millisecond
_LONG_CHARACTERS = 64_000  # in about a tenth of a second
_CHARACTERS_PER_S = 500_000
_MOST_RETRY_S = 60


class EncodingPool:
    """Threads that encode, in three lanes by the length of the text."""

    def __init__(self, max_characters: int):
        """Each lane takes up to `max_characters` waiting or under way, or one longer text alone."""
        self._lanes = [
            (SHORT_CHARACTERS, _Lane("short", max_characters, num_threads=2)),
            (_LONG_CHARACTERS, _Lane("long", max_characters, num_threads=2)),
            (math.inf, _Lane("very-long", max_characters, num_threads=1, gives_back=True)),
        ]

    @contextmanager
    def room(self, num_characters: int) -> Iterator["Room"]:
        """Reserve room for a text in its lane until the context ends.

        Raises `GenerationFailed` 429 when there is none.
        """
        lane = next(lane for most, lane in self._lanes if num_characters <= most)
        lane.enter(num_characters)
        room = Room(lane)
        try:
            yield room
        finally:
            room.leave(num_characters)

    async def run(self, num_characters: int, work: Callable[[], T]) -> T:
        """Run `work` on a thread and return its result. Raises as `room`, and what `work` raises."""
        with self.room(num_characters) as room:
            return await room.run(work)

    def close(self) -> None:
        """Start nothing more; work that runs on a thread ends by itself."""
        for _, lane in self._lanes:
            lane.threads.shutdown(wait=False, cancel_futures=True)


class Room:
    """A text's place in a lane."""

    def __init__(self, lane: "_Lane"):
        self._lane = lane
        self._job: Future[object] | None = None

    async def run(self, work: Callable[[], T]) -> T:
        """Run `work` on the lane's thread. Cancelled before its turn, it never runs."""
        job = self._lane.threads.submit(self._lane.do, work)
        self._job = job  # type: ignore[assignment]
        return await asyncio.wrap_future(job)

    def leave(self, num_characters: int) -> None:
        """Give the place back, unless cancelled work still runs: that keeps its place until it ends."""
        if self._job is None:
            self._lane.leave(num_characters)
        else:
            self._job.add_done_callback(lambda _: self._lane.leave(num_characters))


class _Lane:
    def __init__(self, name: str, max_characters: int, num_threads: int, gives_back: bool = False):
        self.threads = ThreadPoolExecutor(num_threads, thread_name_prefix=f"encoding-{name}")
        self._max_characters = max_characters
        self._gives_back = gives_back
        self._num_characters = 0  # waiting or under way
        self._counting = threading.Lock()

    def enter(self, num_characters: int) -> None:
        with self._counting:
            if self._num_characters and self._num_characters + num_characters > self._max_characters:
                raise self._full()
            self._num_characters += num_characters

    def leave(self, num_characters: int) -> None:
        with self._counting:
            self._num_characters -= num_characters

    def do(self, work: Callable[[], T]) -> T:
        try:
            return work()
        finally:
            if self._gives_back:
                _give_memory_back()

    def _full(self) -> GenerationFailed:
        retry_s = min(_MOST_RETRY_S, max(1, math.ceil(self._num_characters / _CHARACTERS_PER_S)))
        error = (
            f"The server is busy: texts of {self._max_characters} characters may wait to be made into tokens."
        )
        return GenerationFailed(error, "overloaded", 429, retry_s)


def _give_memory_back() -> None:
    """Return freed memory to the system; glibc would keep it for this thread. Does nothing without glibc."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
