"""Who goes next: begun ones, suspects, then priority and arrival; nothing starves and nothing is lost."""

from hypothesis import given
from hypothesis import strategies as st

from router.scheduling.request import Request
from router.scheduling.waiting_queue import AGEING_S, Lane, WaitingQueue
from tests.router.fakes import make_request, make_served_model, make_spec


def drain(queue: WaitingQueue) -> list[int]:
    ids = []
    while (request := queue.head()) is not None:
        queue.take(request)
        ids.append(request.id)
    return ids


def filled(*requests: Request) -> WaitingQueue:
    queue = WaitingQueue()
    for request in requests:
        queue.add(request)
    return queue


def begun(id: int, is_suspect: bool = False) -> Request:
    request = make_request(id)
    request.start(0, make_served_model(), 0.0)
    if is_suspect:
        request.note_shard_death()
    request.start_over()
    return request


def test_equal_priorities_go_in_order_of_arrival() -> None:
    assert drain(filled(*(make_request(id, arrived=id / 100) for id in (2, 0, 1)))) == [0, 1, 2]


def test_a_higher_priority_goes_first() -> None:
    requests = [make_request(id, priority=id) for id in range(3)]
    assert drain(filled(*requests)) == [2, 1, 0]


def test_waiting_long_enough_beats_a_higher_priority() -> None:
    old = make_request(0, arrived=0.0)
    assert drain(filled(old, make_request(1, arrived=2.9 * AGEING_S, priority=3))) == [1, 0]
    assert drain(filled(old, make_request(1, arrived=3.1 * AGEING_S, priority=3))) == [0, 1]


def test_begun_requests_go_before_suspects_and_suspects_before_fresh_ones() -> None:
    queue = filled(make_request(0, priority=9), begun(5, is_suspect=True), begun(7), begun(6))
    assert queue.head([Lane.SUSPECT, Lane.FRESH]).id == 5
    assert queue.head([Lane.FRESH]).id == 0
    assert drain(queue) == [6, 7, 5, 0]


def test_only_requests_that_have_not_started_expire() -> None:
    late = make_request(0, deadline_s=1.0)
    later = make_request(1, deadline_s=2.0)
    started = make_request(2, deadline_s=1.0)
    queue = filled(late, later, started)
    queue.take(queue.head())  # 0 goes first
    late.start(0, make_served_model(), 0.5)
    late.start_over()
    queue.add(late)
    assert queue.next_deadline == 1.0
    assert queue.expire(0.9) == []
    assert queue.expire(1.0) == [started]
    assert drain(queue) == [0, 1]


def test_removed_requests_do_not_pile_up() -> None:
    queue = filled(make_request(0, priority=9))
    for id in range(1, 1000):
        request = make_request(id, deadline_s=1e12)
        queue.add(request)
        assert queue.remove(request)
        assert not queue.remove(request)
    assert sum(map(len, queue.lanes.values())) < 100
    assert len(queue.deadlines) < 100
    assert (len(queue), queue.num_tokens) == (1, 8)


@given(st.lists(st.tuples(st.integers(0, 30), st.integers(0, 3)), max_size=40), st.sets(st.integers(0, 39)))
def test_order_is_that_of_priority_plus_age(arrivals: list[tuple[int, int]], removed: set[int]) -> None:
    requests = [make_request(id, float(at), priority=level) for id, (at, level) in enumerate(arrivals)]
    queue = filled(*requests)
    for id in removed & set(range(len(requests))):
        queue.remove(requests[id])
    kept = [request for request in requests if request.id not in removed]
    assert queue.num_tokens == sum(request.num_tokens for request in kept)
    kept.sort(key=lambda r: (r.timeline.arrived / AGEING_S - r.spec.priority, r.id))
    assert drain(queue) == [request.id for request in kept]


def test_the_first_few_are_those_that_would_be_taken_one_by_one() -> None:
    """In any order of arrival, with several vocabularies, and after some were taken out of the middle."""
    requests = [make_request(id, arrived=(7 * id) % 31, priority=id % 3) for id in range(31)]
    for id in range(0, 31, 4):
        requests[id] = make_request(id, spec=make_spec(first=id + 1, prompt=None), arrived=id / 7)
    queue = filled(*requests)
    for request in queue.first(9, Lane.FRESH)[3:6]:
        queue.take(request)
    assert len(queue) == 28
    first = [request.id for request in queue.first(12, Lane.FRESH)]
    assert queue.first(3, Lane.RETURNED) == []
    assert drain(queue)[:12] == first


def test_one_that_was_taken_may_come_again() -> None:
    queue = filled(*(make_request(id, deadline_s=5.0) for id in range(3)))
    again = queue.first(3, Lane.FRESH)[1]
    queue.take(again)
    queue.add(again)
    assert drain(queue) == [0, 1, 2]
    assert len(queue) == 0
