"""The waiting queue and its order. Pure: times are arguments.

There is one queue for all shards, and a request is bound to a shard only when a step takes it. Bound at
arrival, it would wait behind long answers on one shard while another ran empty, and would have to be moved
whenever a shard died, drained or turned out slow.
"""

import enum
import heapq
from collections import Counter
from collections.abc import Callable, Iterable, Iterator

from router.catalog.served_model import ModelIdentity, Requirements, RoutingKey
from router.scheduling.request import Request

AGEING_S = 10.0  # seconds of waiting worth one level of priority
_SPARE_ENTRIES = 64

_Entry = tuple[float, int, int, Request]  # rank, id, a serial number, for a request may come again
_Heap = list[_Entry]


class Lane(enum.Enum):
    """Classes of waiting requests, in order of precedence."""

    RETURNED = "returned"  # begun and interrupted: its client is in the middle of a stream
    SUSPECT = "suspect"  # present when a shard died: tried again one at a time on a shard
    FRESH = "fresh"  # by priority, then by arrival


def lane_of(request: Request) -> Lane:
    if request.is_suspect:
        return Lane.SUSPECT
    return Lane.RETURNED if request.has_started else Lane.FRESH


def _rank(request: Request, lane: Lane) -> float:
    """Sort key, smaller first. Needs no clock: requests age equally fast, so arrival times decide."""
    if lane is Lane.FRESH:
        return request.timeline.arrived / AGEING_S - request.spec.priority
    return request.id


def _any(requirements: Requirements) -> bool:
    return True


BEGUN = (Lane.RETURNED, Lane.SUSPECT)  # lanes of requests that a shard has lost


class WaitingQueue:
    """Requests that no shard holds. Operations are O(log n) or better, so thousands may wait."""

    def __init__(self) -> None:
        self.num_tokens = 0  # in prompts and interrupted answers
        self._num_waiting: Counter[RoutingKey] = Counter()
        # Tokens to compute, and expected to be generated.
        self._num_outstanding: Counter[RoutingKey] = Counter()
        self._waiting: dict[int, _Entry] = {}
        self._num_pushed = 0
        # One heap for each set of requirements: a request does not block those that another model serves.
        # Entries of removed requests stay in the heaps until they come up or outnumber the others.
        self.lanes: dict[Lane, dict[Requirements, _Heap]] = {lane: {} for lane in Lane}
        self.deadlines: _Heap = []

    def __len__(self) -> int:
        return len(self._waiting)

    def __contains__(self, request: Request) -> bool:
        return request.id in self._waiting

    @property
    def next_deadline(self) -> float | None:
        """When to `expire` next, in seconds of the loop's clock."""
        return self.deadlines[0][0] if self.deadlines else None

    def add(self, request: Request) -> None:
        """Queue a new request, or put back one that a shard has lost."""
        self.num_tokens += request.num_tokens
        lane, requirements = lane_of(request), request.requirements
        self._num_waiting[requirements.routing_key] += 1
        self._num_outstanding[requirements.routing_key] += request.num_outstanding_tokens
        heap = self.lanes[lane].setdefault(requirements, [])
        self._waiting[request.id] = self._push(heap, _rank(request, lane), request)
        if lane is Lane.FRESH and request.spec.deadline_s is not None:
            self._push(self.deadlines, request.spec.deadline_s, request)

    def head(
        self, lanes: Iterable[Lane] = Lane, suits: Callable[[Requirements], bool] = _any
    ) -> Request | None:
        """The next request among those in `lanes` whose requirements `suits` accepts."""
        for lane in lanes:
            heads = [heap[0] for requirements, heap in self._heaps(lane) if suits(requirements)]
            if heads:
                return min(heads)[-1]
        return None

    def first(self, count: int, lane: Lane, suits: Callable[[Requirements], bool] = _any) -> list[Request]:
        """The next `count` requests of a lane whose requirements `suits` accepts, in order."""
        found: list[Request] = []
        reached = [(heap[0], heap, 0) for requirements, heap in self._heaps(lane) if suits(requirements)]
        heapq.heapify(reached)
        while reached and len(found) < count:
            entry, heap, at = heapq.heappop(reached)
            if self._is_current(entry):
                found.append(entry[-1])
            for below in range(2 * at + 1, min(2 * at + 3, len(heap))):  # these come after it
                heapq.heappush(reached, (heap[below], heap, below))
        return found

    def load(self, without: frozenset[RoutingKey] = frozenset()) -> tuple[int, int]:
        """Number of waiting requests without some routing keys, and their outstanding tokens."""
        keys = self._num_waiting.keys() - without
        num_tokens = sum(self._num_outstanding[key] for key in keys)
        return sum(self._num_waiting[key] for key in keys), num_tokens

    def distinct_requirements(self) -> set[Requirements]:
        """The distinct requirements of waiting requests."""
        return {requirements for lane in Lane for requirements, _ in self._heaps(lane)}

    def affinities(self) -> set[ModelIdentity]:
        """Models that interrupted requests would go back to."""
        waiting = (requirements for lane in BEGUN for requirements, _ in self._heaps(lane))
        return {requirements.affinity for requirements in waiting if requirements.affinity is not None}

    def take(self, request: Request) -> None:
        """Remove a request that `head` or `first` named, to run it."""
        self.remove(request)

    def take_all(self, requirements: Requirements) -> list[Request]:
        """Remove and return all requests with these requirements."""
        entries = [entry for lane in self.lanes.values() for entry in lane.get(requirements, [])]
        waiting = [entry[-1] for entry in entries if self._is_current(entry)]
        return [request for request in waiting if self.remove(request)]

    def remove(self, request: Request) -> bool:
        """Remove a request from any position; False if it does not wait."""
        if self._waiting.pop(request.id, None) is None:
            return False
        self.num_tokens -= request.num_tokens
        key = request.requirements.routing_key
        self._num_waiting[key] -= 1
        self._num_outstanding[key] -= request.num_outstanding_tokens
        return True

    def expire(self, now: float) -> list[Request]:
        """Remove and return requests whose deadline has passed before they could start."""
        expired = []
        while self.deadlines and self.deadlines[0][0] <= now:
            request = heapq.heappop(self.deadlines)[-1]
            if not request.has_started and self.remove(request):
                expired.append(request)
        return expired

    def _heaps(self, lane: Lane) -> Iterator[tuple[Requirements, _Heap]]:
        """The heaps of a lane, with ended requests removed from the top; empty heaps are dropped."""
        heaps = self.lanes[lane]
        for requirements, heap in list(heaps.items()):
            while heap and not self._is_current(heap[0]):
                heapq.heappop(heap)
            if heap:
                yield requirements, heap
            else:
                del heaps[requirements]

    def _is_current(self, entry: _Entry) -> bool:
        """It is the request's entry in its lane: not removed, nor from before it came again."""
        return self._waiting.get(entry[1]) is entry

    def _push(self, heap: _Heap, rank: float, request: Request) -> _Entry:
        if len(heap) > 2 * len(self._waiting) + _SPARE_ENTRIES:
            heap[:] = [entry for entry in heap if entry[-1] in self]
            heapq.heapify(heap)
        self._num_pushed += 1
        entry = (rank, request.id, self._num_pushed, request)
        heapq.heappush(heap, entry)
        return entry
