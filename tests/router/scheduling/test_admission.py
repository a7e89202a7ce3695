"""Who begins first for what was computed of it, and that nobody waits for that without end."""

from collections import Counter
from collections.abc import Callable

from hypothesis import given
from hypothesis import strategies as st

from router.scheduling.admission import MOST_PASSED_OVER, AdmissionQuota
from router.scheduling.request import Request
from router.scheduling.scheduler import Limits, Scheduler
from router.scheduling.waiting_queue import Lane, WaitingQueue
from tests.router.fakes import make_request, make_served_model

ONE_AT_A_TIME = Limits(max_batch_size=1, max_batch_tokens=512, block_size=16)


def scheduler_of(*requests: Request) -> Scheduler:
    queue = WaitingQueue()
    for request in requests:
        queue.add(request)
    return Scheduler(0, ONE_AT_A_TIME, make_served_model(), queue)


def next_to_begin(scheduler: Scheduler, saving: Callable[[Request], int] | None, lookahead: int = 16) -> int:
    """The request that begins now; it is over at once."""
    scheduler.in_flight.clear()
    scheduler.schedule(0.0, AdmissionQuota(saving=saving, lookahead=lookahead))
    [request] = scheduler.running.values()
    scheduler.drop(request)
    return request.id


def test_what_saves_most_begins_first_and_the_first_among_equals() -> None:
    savings = {0: 0, 1: 16, 2: 48, 3: 48, 4: -16}
    scheduler = scheduler_of(*map(make_request, savings))
    order = [next_to_begin(scheduler, lambda request: savings[request.id]) for _ in savings]
    assert order == [2, 3, 1, 0, 4]


def test_only_the_first_few_are_compared() -> None:
    scheduler = scheduler_of(*map(make_request, range(6)))
    assert next_to_begin(scheduler, lambda request: request.id, lookahead=3) == 2
    assert next_to_begin(scheduler, None) == 0


def test_a_higher_priority_and_a_deadline_are_not_passed_over() -> None:
    urgent, others = make_request(0, priority=2), [make_request(id) for id in range(1, 4)]
    assert next_to_begin(scheduler_of(urgent, *others), lambda request: request.id) == 0
    due, later = make_request(0, deadline_s=9.0), make_request(1)
    assert next_to_begin(scheduler_of(due, later), lambda request: request.id) == 0


def test_one_that_was_interrupted_goes_first() -> None:
    begun, fresh = make_request(0), make_request(1)
    begun.start(0, make_served_model(), 0.0)
    begun.start_over()
    assert next_to_begin(scheduler_of(begun, fresh), lambda request: 100 * request.id) == 0


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(-50, 50), st.integers(0, 2)), max_size=80))
def test_nobody_is_passed_over_more_often_than_is_said(arrivals: list[tuple[int, int, int]]) -> None:
    """Whatever arrives: (priority, what it saves, how many begin before the next). All begin in the end."""
    queue = WaitingQueue()
    scheduler = Scheduler(0, ONE_AT_A_TIME, make_served_model(), queue)
    saved: dict[int, int] = {}
    passed, begun = Counter[int](), list[int]()

    def begin() -> None:
        order = [request.id for request in queue.first(len(queue), Lane.FRESH)]
        chosen = next_to_begin(scheduler, lambda request: saved[request.id])
        passed.update(order[: order.index(chosen)])
        begun.append(chosen)

    for id, (priority, saving, num_starts) in enumerate(arrivals):
        saved[id] = saving
        queue.add(make_request(id, arrived=0.1 * id, priority=priority))
        for _ in range(min(num_starts, len(queue))):
            begin()
    while queue:
        begin()
    assert sorted(begun) == list(range(len(arrivals)))
    assert max(passed.values(), default=0) <= MOST_PASSED_OVER


def test_the_bound_is_reached_and_holds() -> None:
    queue = WaitingQueue()
    scheduler = Scheduler(0, ONE_AT_A_TIME, make_served_model(), queue)
    queue.add(make_request(0))
    begun = []
    for id in range(1, 40):
        queue.add(make_request(id))
        begun.append(next_to_begin(scheduler, lambda request: request.id))
    assert begun.index(0) == MOST_PASSED_OVER
