"""Where a step's time goes, by wrapping the operations that it calls; it slows what it watches."""

import functools
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch


class Stopwatch:
    """Milliseconds by kind of operation, while watching."""

    def __init__(self, device: torch.device):
        self.ms: dict[str, float] = defaultdict(float)
        self._synchronize = synchronizer(device)

    @contextmanager
    def watching(self, watched: list[tuple[type, str, str]]) -> Iterator[None]:
        """Time these (class, method, kind) until the block ends. They must not call each other."""
        with ExitStack() as stack:
            for owner, method, kind in watched:
                stack.enter_context(self._patched(owner, method, kind))
            yield

    @contextmanager
    def _patched(self, owner: type, method: str, kind: str) -> Iterator[None]:
        own = owner.__dict__.get(method)
        setattr(owner, method, self._timed(getattr(owner, method), kind))
        try:
            yield
        finally:
            if own is None:
                delattr(owner, method)
            else:
                setattr(owner, method, own)

    def _timed(self, function: Callable[..., Any], kind: str) -> Callable[..., Any]:
        def timed(*arguments: Any) -> Any:
            self._synchronize()
            started = time.perf_counter()
            result = function(*arguments)
            self._synchronize()
            self.ms[kind] += (time.perf_counter() - started) * 1000
            return result

        return timed


def synchronizer(device: torch.device) -> Callable[[], None]:
    """Waits until a device has done what it was given; where that is done at once, it does nothing."""
    return functools.partial(torch.cuda.synchronize, device) if device.type == "cuda" else lambda: None


def measured_ms(run: Callable[[], object], synchronize: Callable[[], None]) -> float:
    """How long a call takes, with what it leaves a device to do."""
    synchronize()
    started = time.perf_counter()
    run()
    synchronize()
    return (time.perf_counter() - started) * 1000
