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


class Laps:
    """Times of parts of a step, told as soon as they are known: on a CPU at once, on a GPU by `settle`.

    A GPU is asked and works later: a clock beside the calls would time the asking. Marks that lie among the
    work tell when it came by.
    """

    def __init__(self, device: torch.device):
        self._device = device
        self._on_gpu = device.type == "cuda"
        self._open: list[tuple[Any, Any, Callable[[float], None]]] = []

    def start(self) -> Any:
        """A mark where a part begins; several may end there, and overlap."""
        if not self._on_gpu:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(self._device))
        return event

    def stop(self, start: Any, tell: Callable[[float], None]) -> None:
        """The part that began at a mark ends here; `tell` is to hear of its milliseconds."""
        if self._on_gpu:
            self._open.append((start, self.start(), tell))
        else:
            tell((time.perf_counter() - start) * 1000)

    def settle(self) -> None:
        """Tell what has not been told, in the order of the ends; waits for the last of them."""
        laps, self._open = self._open, []
        if laps:
            laps[-1][1].synchronize()
        for start, end, tell in laps:
            tell(start.elapsed_time(end))


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
