"""Processes for foreign code: what they may not do ends them, and the next request gets another one."""

import time
from collections.abc import Callable, Iterator

import msgspec
import psutil
import pytest

from router.grammar import checker
from router.grammar.constraint import Compiled, regex
from router.processes import WORKER, Bounds, ProcessEnded, Processes
from router.text import rendering
from router.text.rendering import Conversation, Rendered

LOOP = "{% for a in range(100000) %}{% for b in range(100000) %}{% endfor %}{% endfor %}"


Pids = Callable[[], set[int]]


def workers() -> set[int]:
    return {child.pid for child in psutil.Process().children() if WORKER in child.cmdline()}


@pytest.fixture
def pids() -> Pids:
    """Of the workers that are alive and were started since; other tests share this process."""
    before = workers()
    return lambda: workers() - before


@pytest.fixture
def processes(pids: Pids) -> Iterator[Processes]:
    own = Processes()
    yield own
    own.close()


def render(processes: Processes, source: str, bounds: Bounds) -> str:
    asked = msgspec.msgpack.encode(Conversation(source, {}, {"messages": []}))
    return msgspec.msgpack.decode(processes.ask(rendering.NAME, asked, bounds), type=Rendered).text


def test_one_process_renders_and_compiles(processes: Processes, pids: Pids) -> None:
    assert render(processes, "{{ 1 + 1 }}", Bounds(10, 10)) == "2"
    first = pids()
    answer = processes.ask(checker.NAME, msgspec.msgpack.encode(regex("a+")), Bounds(10, 10))
    assert msgspec.msgpack.decode(answer, type=Compiled).grammar
    assert pids() == first


def test_work_is_ended_by_its_processor_time(processes: Processes, pids: Pids) -> None:
    render(processes, "x", Bounds(10, 0.2))
    first = pids()
    started = time.monotonic()
    with pytest.raises(ProcessEnded):
        render(processes, LOOP, Bounds(60, 0.2))
    assert time.monotonic() - started < 20
    assert pids() == set()
    assert render(processes, "x", Bounds(10, 10)) == "x"
    assert pids().isdisjoint(first)


def test_who_waits_for_too_long_is_told_so(processes: Processes, pids: Pids) -> None:
    with pytest.raises(TimeoutError):
        render(processes, LOOP, Bounds(0.1, 60))
    assert pids() == set()


def test_a_process_that_was_started_is_the_one_that_works(processes: Processes, pids: Pids) -> None:
    processes.start()
    [first] = pids()
    processes.start()
    render(processes, "x", Bounds(10, 10))
    assert pids() == {first}
    processes.close()
    assert pids() == set()
