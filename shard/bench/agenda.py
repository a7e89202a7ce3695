"""Points one after the other, as far as time and memory go: what was measured is not lost with the rest."""

import json
import sys
import time
from collections.abc import Callable
from typing import Any, TypeVar

from shard.engine.kv_cache import memory_errors

T = TypeVar("T")


Heard = Callable[[Any], None]


def unheard(measured: Any) -> None:
    """Nobody wants to know before the end."""


class Agenda:
    """Remembers what was not measured, and why; `heard` is told of each point at once."""

    def __init__(self, seconds: float | None = None, heard: Heard = unheard):
        self._heard = heard
        self._end = None if seconds is None else time.monotonic() + seconds
        self.cut: list[str] = []  # not begun in time
        self.failed: dict[str, str] = {}  # a sentence for each

    def run(self, name: str, measure: Callable[[], T]) -> list[T]:
        """What is measured; nothing where time is up or memory does not do."""
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
        """Print one JSON line; the exit status."""
        print(json.dumps(result | {"cut": self.cut, "failed": self.failed}), flush=True)
        return 1 if self.failed else 0
