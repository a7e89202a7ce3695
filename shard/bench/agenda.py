"""Runs a benchmark's points within a limit of time and memory, and keeps results when later points fail."""

import json
import sys
import time
from collections.abc import Callable
from typing import Any, TypeVar

from shard.engine.kv_cache import memory_errors

T = TypeVar("T")


Heard = Callable[[Any], None]


def unheard(measured: Any) -> None:
    """Ignore results until the end."""


class Agenda:
    """Runs points and records which were not measured, and why; reports each to `heard` at once."""

    def __init__(self, seconds: float | None = None, heard: Heard = unheard):
        self._heard = heard
        self._end = None if seconds is None else time.monotonic() + seconds
        self.cut: list[str] = []  # names of points not begun in time
        self.failed: dict[str, str] = {}  # name -> reason in a sentence

    def run(self, name: str, measure: Callable[[], T]) -> list[T]:
        """The results of a point; none if time or memory has run out."""
        if self._end is not None and time.monotonic() >= self._end:
            self.cut.append(name)
            return []
        try:
            with memory_errors():
                measured = measure()
        except MemoryError as error:
            self.failed[name] = str(error)
            print(f"helios bench engine: {name}: {error}", file=sys.stderr)
            return []
        self._heard(measured)
        return [measured]

    def end(self, result: dict[str, Any]) -> int:
        """Print one JSON line; returns the exit status."""
        print(json.dumps(result | {"cut": self.cut, "failed": self.failed}), flush=True)
        return 1 if self.failed else 0
