"""Chat templates rendered in processes of their own: they are foreign code that clients' messages drive."""

import functools
from typing import Any

import msgspec

from router.processes import Bounds, CannotStart, ProcessEnded, Processes, processes
from router.text.chat_template import ChatTemplate, ChatTemplateError

NAME = "render"
MAX_RENDERING_S = 2.0
_MORE_PROCESSOR_S = 2.0  # the router's clock comes first, if the router is still there


class Conversation(msgspec.Struct, frozen=True, array_like=True):
    """A request to a process: a template and its arguments."""

    source: str
    special_tokens: dict[str, str]
    arguments: dict[str, Any] | None  # None: only check the template


class Rendered(msgspec.Struct, frozen=True, array_like=True):
    """The prompt's text, or the reason why there is none."""

    text: str = ""
    error: str | None = None


class Renderer:
    """Renders in other processes. Safe on any thread."""

    def __init__(self, processes: Processes, max_rendering_s: float = MAX_RENDERING_S):
        self._processes = processes
        self._bounds = Bounds(max_rendering_s, MAX_RENDERING_S + _MORE_PROCESSOR_S)

    def render(self, template: ChatTemplate, **arguments: Any) -> str:
        """As `template.render`. Raises ChatTemplateError also when it takes too much time or memory."""
        return self._ask(Conversation(template.source, template.special_tokens, arguments))

    def check(self, template: ChatTemplate) -> None:
        """As `template.check`, and bounded like `render`."""
        self._ask(Conversation(template.source, template.special_tokens, None))

    def _ask(self, asked: Conversation) -> str:
        try:
            answer = self._processes.ask(NAME, msgspec.msgpack.encode(asked), self._bounds)
        except TimeoutError:
            limit = f"{self._bounds.wait_s:g} s"
            raise ChatTemplateError(f"the model's chat template took longer than {limit}") from None
        except ProcessEnded:
            raise ChatTemplateError("the model's chat template made its process break off") from None
        except CannotStart:
            raise ChatTemplateError("no process can be started for the chat template") from None
        answered = msgspec.msgpack.decode(answer, type=Rendered)
        if answered.error is not None:
            raise ChatTemplateError(answered.error)
        return answered.text


@functools.cache
def renderer() -> Renderer:
    """The router's one renderer, shared by all models that it serves."""
    return Renderer(processes())


def rendered(payload: bytes) -> bytes:
    """In a process: render a `Conversation`; both messages are msgpack."""
    asked = msgspec.msgpack.decode(payload, type=Conversation)
    return msgspec.msgpack.encode(_rendered(asked))


def _rendered(asked: Conversation) -> Rendered:
    try:
        template = _template(asked.source, tuple(asked.special_tokens.items()))
        template.check()
        return Rendered("" if asked.arguments is None else template.render(**asked.arguments))
    except ChatTemplateError as error:
        return Rendered(error=str(error))


@functools.lru_cache(maxsize=8)
def _template(source: str, special_tokens: tuple[tuple[str, str], ...]) -> ChatTemplate:
    return ChatTemplate(source, dict(special_tokens))
