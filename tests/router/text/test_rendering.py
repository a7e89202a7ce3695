"""Chat templates that run for ever, ask for all memory, or write without an end: their process is ended."""

import time
from collections.abc import Iterator

import psutil
import pytest

from router.processes import WORKER, Processes
from router.text.chat_template import ChatTemplate, ChatTemplateError
from router.text.rendering import Renderer
from tests.running import Child

MESSAGES = [{"role": "user", "content": "Hé <there>"}]
PLAIN = ChatTemplate(
    "{{ bos_token }}{% for m in messages %}{{ m.role }}: {{ m.content }}{% endfor %}", {"bos_token": "<s>"}
)
LOOPS = "{% for a in range(100000) %}{% for b in range(100000) %}WORK{% endfor %}{% endfor %}"

HOLDER = """
import threading
from router.processes import Processes
from router.text.chat_template import ChatTemplate
from router.text.rendering import Renderer
processes = Processes()
renderer = Renderer(processes, max_rendering_s=600.0)
renderer.render(ChatTemplate("x", {}), messages=[])
print(processes._idle[0].popen.pid, flush=True)
hang = "{% for a in range(100000) %}{% for b in range(100000) %}{% endfor %}{% endfor %}"
if HANGS:
    renderer.render(ChatTemplate(hang, {}), messages=[])
threading.Event().wait()
"""


@pytest.fixture
def renderer() -> Iterator[Renderer]:
    own = Processes()
    yield Renderer(own, max_rendering_s=1.0)
    own.close()


def running() -> set[psutil.Process]:
    return {child for child in psutil.Process().children() if WORKER in child.cmdline()}


@pytest.fixture
def others() -> set[psutil.Process]:
    """Those of other tests' tokenizers."""
    return running()


def test_a_process_renders_what_is_rendered_here(renderer: Renderer, others: set[psutil.Process]) -> None:
    long = [{"role": "user", "content": "word " * 100_000}]
    for messages in (MESSAGES, long, MESSAGES):
        assert renderer.render(PLAIN, messages=messages) == PLAIN.render(messages)
    assert len(running() - others) == 1


@pytest.mark.parametrize(
    ("source", "problem"),
    [
        (LOOPS.replace("WORK", ""), "took longer than 1 s"),
        (LOOPS.replace("WORK", "words and words"), "more than 4000000 characters"),
        ("{{ 'a' * 10**10 }}", "too much memory"),
        ("{{ messages[0].content | center(10**10) }}", "too much memory"),
        ("{{ raise_exception('no') }}", "no"),
        ("{% for %}", "cannot be read"),
    ],
)
def test_what_a_template_may_not_do_is_told_and_the_next_is_rendered(
    renderer: Renderer, others: set[psutil.Process], source: str, problem: str
) -> None:
    with pytest.raises(ChatTemplateError, match=problem):
        renderer.render(ChatTemplate(source, {}), messages=MESSAGES)
    assert renderer.render(PLAIN, messages=MESSAGES) == PLAIN.render(MESSAGES)
    assert len(running() - others) == 1


def test_a_template_is_compiled_there_too_since_that_evaluates_constants(
    renderer: Renderer, monkeypatch: pytest.MonkeyPatch
) -> None:
    for method in ("check", "render"):
        monkeypatch.setattr(ChatTemplate, method, lambda *_: pytest.fail("compiled in this process"))
    renderer.check(ChatTemplate("{{ 'a' * 10**10 }}", {}))
    with pytest.raises(ChatTemplateError, match="cannot be read"):
        renderer.check(ChatTemplate("{% for %}", {}))


def test_a_process_that_was_killed_is_replaced(renderer: Renderer, others: set[psutil.Process]) -> None:
    renderer.check(PLAIN)
    [process] = running() - others
    process.kill()
    process.wait(10)
    assert renderer.render(PLAIN, messages=MESSAGES) == PLAIN.render(MESSAGES)


@pytest.mark.parametrize("hangs", [False, True], ids=["idle", "hanging"])
def test_a_process_ends_after_a_router_that_was_killed(hangs: bool) -> None:
    code = HOLDER.replace("HANGS", str(hangs))
    with Child("-c", code) as holder:
        process = psutil.Process(int(holder.first_line()))
        if hangs:
            while process.cpu_times().user < 0.5:
                assert holder.process.poll() is None
                time.sleep(0.01)
    process.wait(60)
