"""An event loop in virtual time, which jumps ahead whenever all tasks wait for a timer."""

import asyncio
import selectors
from collections.abc import Coroutine, Mapping
from typing import Any, TypeVar

T = TypeVar("T")

_IDLE_S = 5.0  # wall time without an event or timer that counts as deadlock


class _Skipping(selectors.DefaultSelector):
    """A selector that jumps to the next timer instead of waiting."""

    skipped_s = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        ready = super().select(0 if timeout is not None else _IDLE_S)
        if timeout is None and not ready:
            raise RuntimeError("Nothing is left to happen, and somebody waits.")
        if not ready and timeout is not None:
            self.skipped_s += max(0.0, timeout)
        return ready

    def get_map(self) -> Mapping[Any, selectors.SelectorKey]:
        return super().get_map()


class VirtualLoop(asyncio.SelectorEventLoop):
    """An event loop whose time starts at 0 s."""

    def __init__(self) -> None:
        self._skipping = _Skipping()
        super().__init__(self._skipping)

    def time(self) -> float:
        return self._skipping.skipped_s


def run(main: Coroutine[Any, Any, T]) -> T:
    """Like `asyncio.run`, in virtual time."""
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        return runner.run(main)
