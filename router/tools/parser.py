"""Splits a streamed answer into content and calls. The result does not depend on how the stream is cut."""

import enum
from collections.abc import Iterable, Sequence

import msgspec

from router.tools.call_format import CallFormat
from router.tools.json_end import JsonEnd


class CallPart(msgspec.Struct, frozen=True):
    """A part of a call; the first one has the name."""

    index: int
    arguments: str
    name: str | None = None


class ParsedText(msgspec.Struct, frozen=True):
    """The content and the parts of calls in a piece of text."""

    content: str
    calls: list[CallPart]


class _State(enum.Enum):
    CONTENT = "content"
    OPENING = "opening"  # from a trigger, or from what stands between calls, to the arguments
    ARGUMENTS = "arguments"
    CLOSING = "closing"
    AFTER = "after"  # a call: another one, or the end of calls


class CallParser:
    """The parser of one answer. What proves to be no call is content.

    `must_call`: the answer's grammar begins with a call, so that the beginning of a trigger is never content.
    """

    def __init__(self, calls: CallFormat, names: Sequence[str], *, must_call: bool = False):
        self._format = calls
        self._must_call = must_call
        self._later = {calls.opening(name): name for name in names}
        self._first = {calls.before_first + opening: name for opening, name in self._later.items()}
        self._state = _State.CONTENT
        self._pending = ""  # text that is not parsed yet
        self._begun = ""  # what an opening stands behind
        self._is_later = False  # than the first call
        self._json = JsonEnd()
        self._has_content = False
        self._content: list[str] = []
        self._parts: list[CallPart] = []
        self.num_calls = 0

    @property
    def is_within_arguments(self) -> bool:
        """The last call's arguments have not come to their end."""
        return self._state is _State.ARGUMENTS

    def feed(self, text: str) -> ParsedText:
        """Take the next piece of the answer."""
        self._pending += text
        while self._pending and self._step():
            pass
        return self._take_parsed()

    def finish(self) -> ParsedText:
        """Parse the rest: an incomplete call is dropped, an incomplete trigger where there must be a call."""
        is_blank = self.num_calls > 0 and self._pending.isspace()
        if self._state is _State.CONTENT and not (is_blank or self._must_call):
            self._add_content(self._pending)
        self._pending = ""
        return self._take_parsed()

    def _take_parsed(self) -> ParsedText:
        parsed = ParsedText("".join(self._content), _joined(self._parts))
        self._content, self._parts = [], []
        return parsed

    def _step(self) -> bool:
        """Parse what can be parsed; False when more text is needed."""
        match self._state:
            case _State.CONTENT:
                return self._read_content()
            case _State.OPENING:
                return self._read_opening()
            case _State.ARGUMENTS:
                return self._read_arguments()
            case _State.CLOSING:
                return self._read_closing()
            case _State.AFTER:
                return self._read_after()

    def _read_content(self) -> bool:
        text, trigger = self._pending, self._format.trigger
        if self._format.begins_answer:
            return self._read_beginning()
        at = text.find(trigger)
        if at < 0:
            return self._show_up_to(len(text) - _len_of_beginning(text, trigger))
        if self._has_content or text[:at].strip():
            self._add_content(text[:at])
        self._open(trigger, text[at + len(trigger) :])
        return True

    def _read_beginning(self) -> bool:
        """Read calls at the beginning of the answer: elsewhere there are none."""
        trigger, text = self._format.trigger, self._pending.lstrip()
        if self._has_content or (text and not text.startswith(trigger)):
            return self._show_up_to(len(self._pending))
        if not text:
            return False
        self._open(trigger, text[len(trigger) :])
        return True

    def _show_up_to(self, end: int) -> bool:
        """Add content up to `end`; blanks that may stand before a call are held back."""
        shown = self._pending[:end]
        if self._has_content or shown.strip():
            self._add_content(shown)
            self._pending = self._pending[end:]
        return False

    def _open(self, begun: str, rest: str, is_later: bool = False) -> None:
        self._state, self._begun, self._pending, self._is_later = _State.OPENING, begun, rest, is_later

    def _read_opening(self) -> bool:
        openings = self._later if self._is_later else self._first
        for opening, name in openings.items():
            if self._pending.startswith(opening):
                self._pending = self._pending[len(opening) :]
                self._parts.append(CallPart(self.num_calls, "", name))
                self.num_calls += 1
                self._state, self._json = _State.ARGUMENTS, JsonEnd()
                return True
        if any(opening.startswith(self._pending) for opening in openings):
            return False
        return self._give_up(self._begun + self._pending)

    def _read_arguments(self) -> bool:
        end = self._json.find(self._pending)
        taken = self._pending if end is None else self._pending[:end]
        self._parts.append(CallPart(self.num_calls - 1, taken))
        self._pending = self._pending[len(taken) :]
        if end is not None:
            self._state = _State.CLOSING
        return end is not None

    def _read_closing(self) -> bool:
        return self._skip(self._format.after_arguments, _State.AFTER)

    def _read_after(self) -> bool:
        between, after_last = self._format.between, self._format.after_last
        if between and self._pending.startswith(between):
            self._open(between, self._pending[len(between) :], is_later=True)
            return True
        if between and between.startswith(self._pending):
            return False
        return self._skip(after_last, _State.CONTENT)

    def _skip(self, expected: str, then: _State) -> bool:
        """Skip what the format writes; anything else is content."""
        if self._pending.startswith(expected):
            self._pending = self._pending[len(expected) :]
            self._state = then
            return True
        if expected.startswith(self._pending):
            return False
        return self._give_up(self._pending)

    def _give_up(self, text: str) -> bool:
        """Take a text that is no call as content: its first character, behind which a trigger may stand."""
        self._state = _State.CONTENT
        self._add_content(text[:1])
        self._pending = text[1:]
        return True

    def _add_content(self, text: str) -> None:
        if text:
            self._content.append(text)
            self._has_content = True


def _joined(parts: Iterable[CallPart]) -> list[CallPart]:
    """The parts, one for each call."""
    joined: list[CallPart] = []
    for part in parts:
        if joined and joined[-1].index == part.index:
            last = joined.pop()
            joined.append(CallPart(part.index, last.arguments + part.arguments, last.name))
        elif part.arguments or part.name is not None:
            joined.append(part)
    return joined


def _len_of_beginning(text: str, trigger: str) -> int:
    """How many characters at the end of a text could begin a trigger."""
    for length in range(min(len(text), len(trigger) - 1), 0, -1):
        if trigger.startswith(text[-length:]):
            return length
    return 0
