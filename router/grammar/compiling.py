"""Compiles a constraint by llguidance, or says why not and where in a schema. Runs in a worker's process."""

import functools
import re
import time
from collections.abc import Iterator
from typing import Any

import msgspec
from llguidance import LLMatcher, LLParserLimits, LLTokenizer
from llguidance.gbnf_to_lark import any_to_lark

from router.grammar.constraint import Compiled, Constraint, ConstraintKind, GrammarError, Reason
from router.grammar.json_schema import Schema, check, children, resolved
from router.grammar.rewriting import rewritten
from shard.messages import MAX_LEXER_STATES

# JSON as json.dumps writes it: bounded, and most of it forced.
_JSON = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
# With \u a further key could spell the name of a property that the schema has.
_EXACT = {"lenient": False, "coerce_one_of": False, "json_allowed_escapes": 'nrbtf\\"'}
_LOCATING_S = 0.1
_MAX_FORCED_BYTES = 256
_MAX_PROBLEM_CHARACTERS = 300
_UNSATISFIABLE = "Unsatisfiable schema: "
_NO_TEXT = "NoExtension"
_ONE_OF = "oneOf constraints are not supported"
_TOO_MUCH = ("schema too large", "too big", "too complex", "limit", "max is")


def compiled(payload: bytes) -> bytes:
    """In a process: `Compiled` of a `Constraint`."""
    return msgspec.msgpack.encode(_compiled(msgspec.msgpack.decode(payload, type=Constraint)))


def compiled_schemas(payload: bytes) -> bytes:
    """In a process: `Compiled` of a JSON list of schemas; its `grammar` is the list of compiled ones."""
    made: list[msgspec.Raw] = []
    for index, schema in enumerate(msgspec.json.decode(payload, type=list[msgspec.Raw])):
        answer = _compiled(Constraint(ConstraintKind.SCHEMA, bytes(schema).decode()))
        if answer.problem:
            return msgspec.msgpack.encode(msgspec.structs.replace(answer, path=f"[{index}]{answer.path}"))
        [grammar] = msgspec.json.decode(answer.grammar, type=_Grammars).grammars
        made.append(grammar.json_schema)
    return msgspec.msgpack.encode(Compiled(msgspec.json.encode(made).decode()))


def _compiled(constraint: Constraint) -> Compiled:
    try:
        return Compiled(grammar_of(constraint))
    except GrammarError as error:
        return Compiled("", error.problem, error.path, error.reason)
    except Exception as error:  # whatever foreign code raises on a client's constraint is a refusal of it
        return Compiled("", f"is not supported: {_in_one_line(str(error))}", reason=Reason.UNSUPPORTED)


class _Grammar(msgspec.Struct, frozen=True):
    json_schema: msgspec.Raw


class _Grammars(msgspec.Struct, frozen=True):
    grammars: list[_Grammar]


def grammar_of(constraint: Constraint) -> str:
    """The text of a grammar that llguidance has compiled. Raises GrammarError."""
    match constraint.kind:
        case ConstraintKind.SCHEMA:
            return _of_schema(constraint.source)
        case ConstraintKind.REGEX:
            grammar = LLMatcher.grammar_from_regex(constraint.source)
        case ConstraintKind.CHOICE:
            texts = msgspec.json.decode(constraint.source, type=list[str])
            rule = " | ".join(msgspec.json.encode(text).decode() for text in texts)
            # One terminal: as alternatives of a rule, 2000 texts would be too many for the parser.
            grammar = LLMatcher.grammar_from_lark(f"start: TEXT\nTEXT: {rule}")
        case ConstraintKind.LARK:
            grammar = _of_lark(constraint.source)
    error = _error(grammar)
    if error:
        raise _refusal(error)
    return grammar


def _of_schema(source: str) -> str:
    try:
        schema = msgspec.json.decode(source)
    except (msgspec.DecodeError, RecursionError) as unreadable:
        raise GrammarError(f"must be a JSON Schema ({unreadable})") from None
    check(schema)
    grammar = _grammar(schema)
    error = _error(grammar)
    if error:
        raise _refusal(error, _path(schema, error))
    return grammar


def _grammar(schema: Schema) -> str:
    text = msgspec.json.encode(rewritten(schema)).decode()
    return LLMatcher.grammar_from_json_schema(text, overrides=_JSON | _EXACT)  # type: ignore[arg-type]


def _of_lark(source: str) -> str:
    """Refuses special tokens: an answer is text, and may go on under another tokenizer."""
    try:
        grammar = LLMatcher.grammar_from_lark(any_to_lark(source))
    except Exception as error:  # of all kinds, about GBNF
        raise GrammarError(f"is neither Lark nor GBNF: {_in_one_line(str(error))}") from None
    is_wrong, warnings = LLMatcher.validate_grammar_with_warnings(grammar, limits=_limits())
    if not is_wrong and warnings:
        problem = "must be made of texts and regular expressions, without special tokens"
        raise GrammarError(problem, reason=Reason.UNSUPPORTED)
    return grammar


@functools.cache
def _tokenizer() -> LLTokenizer:
    return LLTokenizer("byte")


@functools.cache
def _limits() -> LLParserLimits:
    return LLParserLimits(max_lexer_states=MAX_LEXER_STATES, verbose_errors=False)


def _error(grammar: str) -> str:
    """llguidance's error about a grammar; "" without one."""
    matcher = LLMatcher(_tokenizer(), grammar, log_level=0, limits=_limits())
    if not matcher.is_error():
        matcher.compute_bitmask()  # which finds out whether there is a first byte
        _follow(matcher)
    error = matcher.get_error()
    if error.startswith(_NO_TEXT):
        return _UNSATISFIABLE + "there is no such text"
    return error.partition("\n  while processing")[0]


def _follow(matcher: LLMatcher) -> None:
    """Go on to where there is a choice, and one byte further: a row there may be too long for the parser."""
    forced = matcher.compute_ff_tokens()[:_MAX_FORCED_BYTES]
    if forced and not matcher.consume_tokens(forced):
        return
    mask = matcher.compute_bitmask()
    for byte in range(256):
        if not matcher.is_stopped() and mask[byte // 8] >> byte % 8 & 1:
            matcher.consume_token(byte)
            matcher.compute_bitmask()
            return


def _path(root: Schema, error: str) -> str:
    """The path of the smallest subschema with the same error, as far as it is found in `_LOCATING_S`."""
    deadline = time.process_time() + _LOCATING_S
    schema, path, seen = root, "", {id(root)}
    while True:
        for at, child in _parts(root, schema, path):
            if time.process_time() > deadline:
                return path
            if isinstance(child, dict) and id(child) not in seen and _is_to_blame(root, child, error):
                schema, path = child, at
                seen.add(id(child))
                break
        else:
            return path + (".pattern" if "pattern" in schema and "regex" in error else "")


def _is_to_blame(root: Schema, child: Schema, error: str) -> bool:
    shared = {key: root[key] for key in ("$schema", "$defs", "definitions") if key in root}
    return _error(_grammar(shared | child)) == error


def _parts(root: Schema, schema: Schema, path: str) -> Iterator[tuple[str, Any]]:
    if "$ref" in schema:
        reference = schema["$ref"]
        yield reference.removeprefix("#").replace("/", "."), resolved(root, reference)
    for at, child in children(schema):
        if not at.startswith((".$defs", ".definitions")):
            yield path + at, child


def _refusal(error: str, path: str = "") -> GrammarError:
    """llguidance's error as a sentence that follows the name of a field."""
    if error.startswith(_UNSATISFIABLE):
        return GrammarError(f"fits nothing: {error.removeprefix(_UNSATISFIABLE)}", path)
    if any(words in error for words in _TOO_MUCH):
        return GrammarError(f"is too complex: {_in_one_line(error)}", path, Reason.BOUND)
    if _ONE_OF in error:
        problem = "must have alternatives that exclude each other by types, constants or required properties"
        return GrammarError(f"{problem}; `anyOf` needs none", f"{path}.oneOf", Reason.UNSUPPORTED)
    of_regex = re.search(r"^error: (.*)", error, re.MULTILINE)
    reason = of_regex[1] if of_regex else error.partition("\n")[0]
    return GrammarError(f"is not supported: {_in_one_line(reason)}", path, Reason.UNSUPPORTED)


def _in_one_line(text: str) -> str:
    return " ".join(text.split())[:_MAX_PROBLEM_CHARACTERS]
