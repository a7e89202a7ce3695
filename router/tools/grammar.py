"""The grammar of answers that may, or must, call tools, in llguidance's Lark.

Some tokenizers have the marks of a format as single tokens, which no text in a grammar matches. So a grammar
is of one tokenizer, and is made again for another.
"""

import json
import re
from collections.abc import Iterable

import msgspec

from router.tools.call_format import MARKS, CallFormat
from router.tools.tools import Function, Tools

_MARKS = re.compile("(" + "|".join(map(re.escape, MARKS)) + ")")
_ANSWER = "answer"
_TEXT = r"(.|\n)*"
_TEXT_BEFORE_NO_CALL = r"([^{ \t\r\n](.|\n)*)?"  # where a call is known by its first character


class SpecialTokens(msgspec.Struct, frozen=True):
    """Tokens of a tokenizer that no text in a grammar matches."""

    ids: dict[str, int]
    shown: list[int] = []  # of these, the ones that clients see as text all the same

    def within(self, vocab_size: int | None) -> "SpecialTokens":
        """The tokens below the model's `vocab_size`: a tokenizer may have more. None: all."""
        if vocab_size is None:
            return self
        ids = {text: id for text, id in self.ids.items() if id < vocab_size}
        return SpecialTokens(ids, [id for id in self.shown if id < vocab_size])


def grammar_of(tools: Tools, calls: CallFormat, special: SpecialTokens, answer: str = "") -> str:
    """The grammar of an answer. `answer` is the grammar of one that calls no tool; "": any text.

    Where a call is required, `answer` has no effect. Where both kinds may begin alike, as in Llama's format
    beside JSON, llguidance takes the call.
    """
    held = "" if tools.must_call else answer
    rules = ["%llguidance {}", *_starts(tools, calls, special, bool(held))]
    rules.append("call: " + "\n    | ".join(_call(tool, calls, special) for tool in tools.callable))
    text = "\n".join(rules) + "\n"
    return _beside(text, held) if held else text


def _beside(text: str, answer: str) -> str:
    """One grammar of both, in which that of calls refers to the other as `_ANSWER`."""
    try:
        others = json.loads(answer)["grammars"]
    except ValueError:
        others = [{"lark_grammar": answer}]
    first = others[0] | {"name": _ANSWER}
    return json.dumps({"grammars": [{"name": "calls", "lark_grammar": text}, first, *others[1:]]})


def _starts(tools: Tools, calls: CallFormat, special: SpecialTokens, is_held: bool) -> Iterable[str]:
    several = _several(tools, calls, special)
    if tools.must_call or is_held:
        other = f"@{_ANSWER} | " if is_held else ""
        yield f"start: {other}{_terminals(calls.trigger, special)} {several}"
        return
    if calls.begins_answer:
        yield f"start: text | {_terminals(calls.trigger, special)} {several}"
        yield f"text: FIRST{_others(special)}"
        yield f"FIRST: /{_TEXT_BEFORE_NO_CALL}/"
    elif calls.trigger in special.ids:
        yield f"start: text | text {_terminals(calls.trigger, special)} {several}"
        yield f"text: TEXT{_others(special)}"
    else:
        yield f"start: text | head {several}"
        yield f"text: TEXT{_others(special)}"
        yield f"head: {_shown_before(special)}trigger"
        yield f"trigger[lazy]: TEXT {json.dumps(calls.trigger)}"
    yield f"TEXT: /{_TEXT}/"


def _several(tools: Tools, calls: CallFormat, special: SpecialTokens) -> str:
    num_more = tools.max_calls - 1 if calls.between else 0
    after = _terminals(calls.after_arguments, special)
    more = f"({_terminals(calls.between, special)} call {after}){{0,{num_more}}}" if num_more else ""
    parts = [_terminals(calls.before_first, special), "call", after, more]
    return " ".join(filter(None, [*parts, _terminals(calls.after_last, special)]))


def _call(tool: Function, calls: CallFormat, special: SpecialTokens) -> str:
    return f"{_terminals(calls.opening(tool.name), special)} %json {tool.arguments}"


def _terminals(text: str, special: SpecialTokens) -> str:
    """A text as terminals: marks that are tokens as tokens, the rest as literals."""
    parts = [part for part in _MARKS.split(text) if part]
    joined: list[str] = []
    was_text = False
    for part in parts:
        is_token = part in special.ids
        if is_token:
            joined.append(f"<[{special.ids[part]}]>")
        elif was_text:
            joined[-1] = json.dumps(json.loads(joined[-1]) + part)
        else:
            joined.append(json.dumps(part))
        was_text = not is_token
    return " ".join(joined)


def _others(special: SpecialTokens) -> str:
    """Tokens beside text that clients see, like those around a model's thoughts."""
    ids = _shown_ids(special)
    return f" (<[{ids}]> TEXT)*" if ids else ""


def _shown_before(special: SpecialTokens) -> str:
    ids = _shown_ids(special)
    return f"(TEXT <[{ids}]>)* " if ids else ""


def _shown_ids(special: SpecialTokens) -> str:
    marks = {special.ids[mark] for mark in MARKS if mark in special.ids}
    return ",".join(str(id) for id in sorted(special.shown) if id not in marks)
