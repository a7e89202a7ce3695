"""Profiles a step by wrapping its operations, which slows it."""

import functools
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch


class Stopwatch:
    """Milliseconds by kind of operation, collected in `watching`."""

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


class Laps:
    """Times of parts of a step, reported as soon as known: on a CPU at once, on a GPU by `settle`.

    A GPU works asynchronously: a clock around the calls would time their submission. Events in its queue tell
    when it reached them.
    """

    def __init__(self, device: torch.device):
        self._device = device
        self._on_gpu = device.type == "cuda"
        self._open: list[tuple[Any, Any, Callable[[float], None]]] = []

    def start(self) -> Any:
        """Begin a part; returns a mark. Parts may overlap."""
        if not self._on_gpu:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(self._device))
        return event

    def stop(self, start: Any, tell: Callable[[float], None]) -> None:
        """End the part begun at a mark; `tell` receives its milliseconds."""
        if self._on_gpu:
            self._open.append((start, self.start(), tell))
        else:
            tell((time.perf_counter() - start) * 1000)

    def settle(self) -> None:
        """Report pending times in order of the ends; waits for the last one."""
        laps, self._open = self._open, []
        if laps:
            laps[-1][1].synchronize()
        for start, end, tell in laps:
            tell(start.elapsed_time(end))


def synchronizer(device: torch.device) -> Callable[[], None]:
    """A function that waits for a device's queued work; does nothing on a CPU."""
    return functools.partial(torch.cuda.synchronize, device) if device.type == "cuda" else lambda: None


def measured_ms(run: Callable[[], object], synchronize: Callable[[], None]) -> float:
    """Milliseconds of a call, including the work that it queues on a device."""
    synchronize()
    started = time.perf_counter()
    run()
    synchronize()
    return (time.perf_counter() - started) * 1000
