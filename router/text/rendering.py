"""Chat templates rendered in processes of their own, bounded in time, memory and output.

A template is foreign code that a client's messages drive: it may loop for hours or ask for all memory, and a
thread in which it does could not be ended. `python -m router.text.rendering` is such a process: it renders
one conversation after another from its standard input, a socket, and ends with the router or soon after.
"""

import atexit
import contextlib
import functools
import resource
import socket
import subprocess
import sys
from typing import Any

import msgspec

from router.child import start_child
from router.text.chat_template import ChatTemplate, ChatTemplateError

MAX_RENDERING_S = 2.0
MAX_MEMORY_BYTES = 1 << 30  # of a process, the interpreter's own included
_START_TIMEOUT_S = 60.0
_KILL_TIMEOUT_S = 10.0
_LENGTH_BYTES = 4


class Conversation(msgspec.Struct, frozen=True, array_like=True):
    """A request to a rendering process: a template and its arguments."""

    source: str
    special_tokens: dict[str, str]
    arguments: dict[str, Any] | None  # None: only check the template


class Rendered(msgspec.Struct, frozen=True, array_like=True):
    """The prompt's text, or the reason why there is none."""

    text: str = ""
    error: str | None = None


class Renderer:
    """A pool of rendering processes, as many as conversations are rendered at once. Safe on any thread."""

    def __init__(self, max_rendering_s: float = MAX_RENDERING_S):
        self._max_rendering_s = max_rendering_s
        self._idle: list[_Process] = []

    def render(self, template: ChatTemplate, **arguments: Any) -> str:
        """As `template.render`. Raises ChatTemplateError also when it takes too much time or memory."""
        return self._ask(Conversation(template.source, template.special_tokens, arguments))

    def check(self, template: ChatTemplate) -> None:
        """As `template.check`, and bounded like `render`."""
        self._ask(Conversation(template.source, template.special_tokens, None))

    def _ask(self, asked: Conversation) -> str:
        process = self._take()
        try:
            rendered = process.ask(asked, self._max_rendering_s)
        except TimeoutError:
            process.end()
            limit = f"{self._max_rendering_s:g} s"
            raise ChatTemplateError(f"the model's chat template took longer than {limit}") from None
        except OSError:
            process.end()
            raise ChatTemplateError("the model's chat template made its process break off") from None
        self._idle.append(process)
        if rendered.error is not None:
            raise ChatTemplateError(rendered.error)
        return rendered.text

    def close(self) -> None:
        """End the processes. Idempotent; a later `render` starts new ones."""
        while self._idle:
            self._idle.pop().end()

    def _take(self) -> "_Process":
        while self._idle:
            process = self._idle.pop()
            if process.is_alive:
                return process
            process.end()
        return _Process()


class _Process:
    def __init__(self) -> None:
        """Start a process. Raises ChatTemplateError when that fails."""
        ours, theirs = socket.socketpair()
        with theirs:
            command = [sys.executable, "-m", __name__]
            self._sock = ours
            self._popen = start_child(command, stdin=theirs.fileno(), stdout=subprocess.DEVNULL)
        try:
            self.ask(None, _START_TIMEOUT_S)
        except OSError:
            self.end()
            raise ChatTemplateError("no process can be started for the chat template") from None

    @property
    def is_alive(self) -> bool:
        return self._popen.poll() is None

    def ask(self, conversation: Conversation | None, timeout_s: float) -> Rendered:
        """Send a conversation (None: a ping) and wait for the answer. Raises OSError or TimeoutError."""
        self._sock.settimeout(timeout_s)
        _send(self._sock, msgspec.msgpack.encode(conversation))
        answer = _receive(self._sock)
        if answer is None:
            raise ConnectionResetError("it has ended")
        return msgspec.msgpack.decode(answer, type=Rendered)

    def end(self) -> None:
        self._popen.kill()
        self._sock.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._popen.wait(_KILL_TIMEOUT_S)


@functools.cache
def renderer() -> Renderer:
    """The router's one pool, shared by all models that it serves."""
    own = Renderer()
    atexit.register(own.close)
    return own


def _send(sock: socket.socket, data: bytes) -> None:
    sock.sendall(len(data).to_bytes(_LENGTH_BYTES) + data)


def _receive(sock: socket.socket) -> bytes | None:
    """One message from the socket; None when the other side is gone."""
    length = _receive_exactly(sock, _LENGTH_BYTES)
    return None if length is None else _receive_exactly(sock, int.from_bytes(length))


def _receive_exactly(sock: socket.socket, num_bytes: int) -> bytes | None:
    data = bytearray()
    while len(data) < num_bytes:
        part = sock.recv(num_bytes - len(data))
        if not part:
            return None
        data += part
    return bytes(data)


def main() -> None:
    """Serve the router at the other end of standard input."""
    sock = socket.socket(fileno=0)
    with contextlib.suppress(ValueError, OSError):  # without such a limit the router's timeout remains
        resource.setrlimit(resource.RLIMIT_AS, (MAX_MEMORY_BYTES, MAX_MEMORY_BYTES))
    while (data := _receive(sock)) is not None:
        _allow_processor_time(MAX_RENDERING_S)
        asked = msgspec.msgpack.decode(data, type=Conversation | None)
        _send(sock, msgspec.msgpack.encode(_rendered(asked)))


def _allow_processor_time(seconds: float) -> None:
    """Let the kernel end the process after `seconds`, in case the router is no longer there to do so."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    _, hard = resource.getrlimit(resource.RLIMIT_CPU)
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_CPU, (int(used.ru_utime + used.ru_stime + seconds) + 2, hard))


def _rendered(asked: Conversation | None) -> Rendered:
    if asked is None:
        return Rendered()
    try:
        template = _template(asked.source, tuple(asked.special_tokens.items()))
        template.check()
        return Rendered("" if asked.arguments is None else template.render(**asked.arguments))
    except ChatTemplateError as error:
        return Rendered(error=str(error))


@functools.lru_cache(maxsize=8)
def _template(source: str, special_tokens: tuple[tuple[str, str], ...]) -> ChatTemplate:
    return ChatTemplate(source, dict(special_tokens))


if __name__ == "__main__":
    main()
