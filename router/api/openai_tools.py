"""Tools in OpenAI's shapes: what a request says of them, and the calls in an answer."""

import functools
import re
import secrets
from collections.abc import Iterable

import msgspec

from router.api.constraints import Refusal
from router.api.errors import Invalid
from router.api.openai_structs import (
    ChatRequest,
    FunctionCall,
    FunctionCallDelta,
    Tool,
    ToolCall,
    ToolCallDelta,
    ToolChoice,
)
from router.api.service import Answer
from router.api.stop_text import StopText
from router.grammar.checker import schemas_of
from router.grammar.constraint import GrammarError
from router.processes import CannotStart, processes
from router.scheduling.request import Finished, GenerationFailed, Request
from router.text.tokenizer import Token
from router.tools.call_format import MARKS
from router.tools.parser import CallParser, CallPart, ParsedText
from router.tools.tools import MAX_CALLS, Function, Tools
from shard.messages import FinishReason

MAX_SCHEMA_BYTES = 256 * 1024  # of all tools of a request
_ID_BYTES = 12
_MAX_CHECKED = 32  # lists of tools whose schemas are kept: agents send the same ones with every turn
_PATH = re.compile(r"\[(?P<index>\d+)\](?P<path>.*)", re.DOTALL)


def tools_of(asked: ChatRequest) -> Tools | None:
    """The tools an answer may call. None: it may call none. Raises `Invalid`."""
    functions = [_function(tool, f"tools[{index}].function") for index, tool in enumerate(asked.tools or [])]
    _check_size(functions)
    mode, names = _choice(asked.tool_choice, [function.name for function in functions])
    if mode == "none" or not functions:
        return None
    is_named = mode == "function"
    has_one_call = is_named or asked.parallel_tool_calls is False
    return Tools(
        functions=functions,
        names=names,
        must_call=mode != "auto",
        is_named=is_named,
        max_calls=1 if has_one_call else MAX_CALLS,
    )


def _function(tool: Tool, at: str) -> Function:
    given = tool.function
    parameters = given.parameters or {}
    if parameters.get("type", "object") != "object":
        raise Invalid(f"{at}.parameters.type", 'must be "object"')
    return Function(given.name, given.description, {"type": "object", "properties": {}} | parameters)


def _check_size(functions: list[Function]) -> None:
    seen: set[str] = set()
    for index, function in enumerate(functions):
        if function.name in seen:
            raise Invalid(f"tools[{index}].function.name", f"is taken: {function.name}")
        seen.add(function.name)
    num_bytes = len(msgspec.json.encode([function.parameters for function in functions]))
    if num_bytes > MAX_SCHEMA_BYTES:
        problem = f"have schemas of {num_bytes} bytes together; at most {MAX_SCHEMA_BYTES} are taken"
        raise Invalid("tools", problem)


def _choice(choice: str | ToolChoice | None, known: list[str]) -> tuple[str, list[str]]:
    """The mode, and the names of functions that may be called.

    A bare string that is no mode is a function's name, as in TGI.
    """
    match choice:
        case None | "" | "auto":
            return "auto", known
        case "none":
            return "none", []
        case "required":
            return "required", _named([], "tool_choice", known) or known
        case str():
            return "function", _named([choice], "tool_choice", known)
        case ToolChoice(type="allowed_tools", allowed_tools=allowed) if allowed is not None:
            names = [tool.function.name for tool in allowed.tools]
            if not names:
                raise Invalid("tool_choice.allowed_tools.tools", "is empty")
            return allowed.mode, _named(names, "tool_choice.allowed_tools.tools", known)
        case ToolChoice(type="function", function=function) if function is not None:
            return "function", _named([function.name], "tool_choice.function.name", known)
    raise Invalid(f"tool_choice.{choice.type}", "is missing")


def _named(names: list[str], at: str, known: list[str]) -> list[str]:
    if not known:
        raise Invalid(at, "asks for a call, but there are no `tools`")
    for name in names:
        if name not in known:
            raise Invalid(at, f"names no function of `tools`: {name!r}. There are: {', '.join(known)}")
    return names


def checked(tools: Tools) -> Tools:
    """The tools with their schemas compiled. Slow: for a thread.

    Raises `Invalid`, and `GenerationFailed` 429 when there is too much to do.
    """
    schemas = msgspec.json.encode([function.parameters for function in tools.functions])
    try:
        made = _arguments(schemas)
    except GrammarError as error:
        at = _PATH.fullmatch(error.path)
        name = "tools" if at is None else f"tools[{at['index']}].function.parameters{at['path']}"
        raise Refusal(name, error.problem, error.reason) from None
    except (TimeoutError, CannotStart):
        problem = "There is no time to check the schemas of `tools` now."
        raise GenerationFailed(problem, "overloaded", 429, 1) from None
    functions = [
        msgspec.structs.replace(function, arguments=arguments)
        for function, arguments in zip(tools.functions, made, strict=True)
    ]
    return msgspec.structs.replace(tools, functions=functions)


@functools.lru_cache(_MAX_CHECKED)
def _arguments(schemas: bytes) -> list[str]:
    return [bytes(schema).decode() for schema in schemas_of(processes(), schemas)]


def random_id(prefix: str) -> str:
    return f"{prefix}_{secrets.token_hex(_ID_BYTES)}"


class Passage(msgspec.Struct, frozen=True):
    """The visible text and the pieces of calls in some tokens of an answer."""

    text: str
    calls: list[ToolCallDelta] = []


class AnswerReader:
    """Reads one answer, streamed or whole."""

    def __init__(self, request: Request):
        prompt = request.spec.prompt
        self._tools = None if prompt is None else prompt.tools
        self._visible = StopText(request.spec.stop, MARKS if self._tools is not None else ())
        self._ids: list[str] = []
        self._parser: CallParser | None = None
        if self._tools is not None:
            assert prompt is not None
            assert prompt.call_format is not None
            self._parser = CallParser(prompt.call_format, self._tools.names, must_call=self._tools.must_call)

    @property
    def expects_calls(self) -> bool:
        return self._parser is not None

    def push(self, token: Token) -> Passage:
        """Take a token that is not the last."""
        text = self._visible.push(token)
        return Passage(text) if self._parser is None else self._passage(self._parser.feed(text))

    def finish(self, finished: Finished) -> Passage:
        """Take the rest."""
        text = self._visible.finish(finished)
        if self._parser is None:
            return Passage(text)
        parsed, rest = self._parser.feed(text), self._parser.finish()
        return self._passage(ParsedText(parsed.content + rest.content, parsed.calls + rest.calls))

    def reason_of(self, finished: Finished) -> str:
        """TGI's three reasons in OpenAI's: where one function had to be called, its call ends with "stop"."""
        if finished.reason is FinishReason.LENGTH:
            return "length"
        if self._parser is not None and self._parser.is_within_arguments:
            return "stop"  # at a stop string: such arguments are no JSON, and nobody should make this call
        return "tool_calls" if self._ids and self._tools is not None and not self._tools.is_named else "stop"

    def _passage(self, parsed: ParsedText) -> Passage:
        return Passage(parsed.content, [self._delta(part) for part in parsed.calls])

    def _delta(self, part: CallPart) -> ToolCallDelta:
        if part.name is None:
            return ToolCallDelta(part.index, FunctionCallDelta(part.arguments))
        id = random_id("call")
        self._ids.append(id)
        return ToolCallDelta(part.index, FunctionCallDelta(part.arguments, part.name), id, "function")


def read(answer: Answer) -> tuple[str, list[ToolCall], str]:
    """A whole answer's content, calls and finish reason: those of its stream, joined."""
    reader = AnswerReader(answer.request)
    passages = [reader.push(token) for token in answer.tokens[:-1]] if reader.expects_calls else []
    text, calls = _joined([*passages, reader.finish(answer.finished)])
    return text, calls, reader.reason_of(answer.finished)


def _joined(passages: Iterable[Passage]) -> tuple[str, list[ToolCall]]:
    texts: list[str] = []
    calls: dict[int, list[ToolCallDelta]] = {}
    for passage in passages:
        texts.append(passage.text)
        for delta in passage.calls:
            calls.setdefault(delta.index, []).append(delta)
    return "".join(texts), [_call(deltas) for deltas in calls.values()]


def _call(deltas: list[ToolCallDelta]) -> ToolCall:
    first = deltas[0]
    assert first.id is not msgspec.UNSET
    assert first.function.name is not msgspec.UNSET
    arguments = "".join(delta.function.arguments for delta in deltas)
    return ToolCall(first.id, FunctionCall(first.function.name, arguments))
