"""Registers requests from submission to end, and notifies observers. Knows no shard and no queue."""

import asyncio
import logging
from collections import deque
from collections.abc import Callable

from router.scheduling.observer import Observer
from router.scheduling.request import GenerationFailed, Request

log = logging.getLogger(__name__)

_NUM_KEPT = 100
_NUM_MEASURED = 32


class RequestRegistry:
    """Live requests by id, the latest that ended, and the observers."""

    def __init__(self) -> None:
        self.live: dict[int, Request] = {}
        self.ended: deque[Request] = deque(maxlen=_NUM_KEPT)  # latest first
        self.is_empty = asyncio.Event()
        self.is_empty.set()
        self._observers: list[Observer] = []
        self._untold: list[Callable[[Observer], None]] = []
        self._service_times: deque[float] = deque(maxlen=_NUM_MEASURED)

    def add_observer(self, observer: Observer) -> None:
        self._observers.append(observer)

    def tell(self, event: Callable[[Observer], None]) -> None:
        """Notify observers of an event, in order, after readers of new tokens have run."""
        if not self._untold:
            asyncio.get_running_loop().call_soon(self._tell_all)
        self._untold.append(event)

    def enter(self, request: Request) -> None:
        self.live[request.id] = request
        self.is_empty.clear()
        self.tell(lambda observer: observer.on_submitted(request))

    def end(self, request: Request) -> None:
        """Note a request that has just ended in any way."""
        del self.live[request.id]
        self.ended.appendleft(request)
        if not self.live:
            self.is_empty.set()
        line = request.timeline
        if line.started is not None and line.finished is not None:
            self._service_times.append(line.finished - line.started)
        self.tell(lambda observer: observer.on_finished(request))

    def fail(self, request: Request, error: GenerationFailed, now: float) -> None:
        """End a request with an error."""
        request.fail(error, now)
        self.end(request)

    def find(self, request_id: int) -> Request | None:
        ended = (request for request in self.ended if request.id == request_id)
        return self.live.get(request_id) or next(ended, None)

    @property
    def mean_service_s(self) -> float:
        """Mean seconds from start to end of the latest requests; 0 when there are none."""
        return sum(self._service_times) / max(1, len(self._service_times))

    def _tell_all(self) -> None:
        events, self._untold = self._untold, []
        for observer in self._observers:
            for event in events:
                try:
                    event(observer)
                except Exception:
                    log.exception("An observer failed; serving goes on.")
