"""Processes for foreign code: what they may not do ends them, and the next request gets another one."""

import os
import time
from collections.abc import Iterator

import msgspec
import pytest

from router.grammar import checker
from router.grammar.constraint import Compiled, regex
from router.processes import Bounds, ProcessEnded, Processes
from router.text import rendering
from router.text.rendering import Conversation, Rendered

LOOP = "{% for a in range(100000) %}{% for b in range(100000) %}{% endfor %}{% endfor %}"


@pytest.fixture
def processes() -> Iterator[Processes]:
    own = Processes()
    yield own
    own.close()


def render(processes: Processes, source: str, bounds: Bounds) -> str:
    asked = msgspec.msgpack.encode(Conversation(source, {}, {"messages": []}))
    return msgspec.msgpack.decode(processes.ask(rendering.NAME, asked, bounds), type=Rendered).text


def pids(processes: Processes) -> list[int]:
    return [process.popen.pid for process in processes._idle]  # noqa: SLF001


def test_one_process_renders_and_compiles(processes: Processes) -> None:
    assert render(processes, "{{ 1 + 1 }}", Bounds(10, 10)) == "2"
    first = pids(processes)
    answer = processes.ask(checker.NAME, msgspec.msgpack.encode(regex("a+")), Bounds(10, 10))
    assert msgspec.msgpack.decode(answer, type=Compiled).grammar
    assert pids(processes) == first


def test_work_is_ended_by_its_processor_time(processes: Processes) -> None:
    render(processes, "x", Bounds(10, 0.2))
    first = pids(processes)
    started = time.monotonic()
    with pytest.raises(ProcessEnded):
        render(processes, LOOP, Bounds(60, 0.2))
    assert time.monotonic() - started < 20
    assert pids(processes) == []
    assert render(processes, "x", Bounds(10, 10)) == "x"
    assert pids(processes) != first


def test_who_waits_for_too_long_is_told_so(processes: Processes) -> None:
    with pytest.raises(TimeoutError):
        render(processes, LOOP, Bounds(0.1, 60))
    assert pids(processes) == []


def test_a_process_that_was_started_is_the_one_that_works(processes: Processes) -> None:
    processes.start()
    [first] = pids(processes)
    processes.start()
    render(processes, "x", Bounds(10, 10))
    assert pids(processes) == [first]
    processes.close()
    with pytest.raises(ProcessLookupError):
        os.kill(first, 0)
