"""The waiting queue: who goes next. Pure; a request's times are its own, `now` is given.

There is one queue for all shards, and a request is bound to a shard only when a step takes it. Bound at
arrival, it would wait behind long answers on one shard while another ran empty, and would have to be moved
whenever a shard died, drained or turned out slow.
"""

import enum
import heapq
from collections.abc import Iterable

from router.request import Request

AGEING_S = 10.0  # one level of priority is worth so many seconds of waiting
_SPARE_ENTRIES = 64


class Lane(enum.Enum):
    """Kinds of waiting, those that go first before the others."""

    RETURNED = "returned"  # begun and interrupted: its client is in the middle of a stream
    SUSPECT = "suspect"  # present when a shard died: tried again one at a time on a shard
    FRESH = "fresh"  # by priority, then by arrival


def lane_of(request: Request) -> Lane:
    if request.is_suspect:
        return Lane.SUSPECT
    return Lane.RETURNED if request.has_started else Lane.FRESH


def _rank(request: Request, lane: Lane) -> float:
    """Smaller goes first. All age equally fast, so ageing needs no clock: arriving early is a head start."""
    if lane is Lane.FRESH:
        return request.timeline.arrived / AGEING_S - request.spec.priority
    return request.id


class WaitingQueue:
    """Requests that no shard holds. Every operation is O(log n) or better, so thousands may wait."""

    def __init__(self) -> None:
        self.num_tokens = 0  # of prompts, and of answers that were interrupted
        self.num_outstanding_tokens = 0  # to compute, and expected to be generated
        self._waiting: dict[int, Request] = {}
        # Entries of removed requests stay in the heaps until they come up or outnumber the others.
        self._lanes: dict[Lane, list[tuple[float, int, Request]]] = {lane: [] for lane in Lane}
        self._deadlines: list[tuple[float, int, Request]] = []

    def __len__(self) -> int:
        return len(self._waiting)

    def __contains__(self, request: Request) -> bool:
        return request.id in self._waiting

    @property
    def next_deadline(self) -> float | None:
        """When to `expire` next, in seconds of the loop's clock."""
        return self._deadlines[0][0] if self._deadlines else None

    def add(self, request: Request) -> None:
        """Queue a new request, or put back one that a shard has lost."""
        self._waiting[request.id] = request
        self.num_tokens += request.num_tokens
        self.num_outstanding_tokens += request.num_outstanding_tokens
        lane = lane_of(request)
        self._push(self._lanes[lane], _rank(request, lane), request)
        if lane is Lane.FRESH and request.spec.deadline_s is not None:
            self._push(self._deadlines, request.spec.deadline_s, request)

    def head(self, lanes: Iterable[Lane] = Lane) -> Request | None:
        """Who goes next among those in `lanes`."""
        for lane in lanes:
            heap = self._lanes[lane]
            while heap and heap[0][2] not in self:
                heapq.heappop(heap)
            if heap:
                return heap[0][2]
        return None

    def take(self, request: Request) -> None:
        """Remove a request that `head` named, to run it."""
        heapq.heappop(self._lanes[lane_of(request)])
        self.remove(request)

    def remove(self, request: Request) -> bool:
        """Remove a request wherever it stands; False if it does not wait."""
        if self._waiting.pop(request.id, None) is None:
            return False
        self.num_tokens -= request.num_tokens
        self.num_outstanding_tokens -= request.num_outstanding_tokens
        return True

    def expire(self, now: float) -> list[Request]:
        """Remove and name the requests whose deadline has passed before they could start."""
        expired = []
        while self._deadlines and self._deadlines[0][0] <= now:
            request = heapq.heappop(self._deadlines)[2]
            if not request.has_started and self.remove(request):
                expired.append(request)
        return expired

    def _push(self, heap: list[tuple[float, int, Request]], rank: float, request: Request) -> None:
        if len(heap) > 2 * len(self._waiting) + _SPARE_ENTRIES:
            heap[:] = [entry for entry in heap if entry[2] in self]
            heapq.heapify(heap)
        heapq.heappush(heap, (rank, request.id, request))
