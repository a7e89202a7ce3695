"""Reads the constraint that a client puts on an answer, in any dialect. Pure."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Self

import msgspec

from router.api.constraint_structs import (
    Format,
    Json,
    JsonObject,
    JsonSchema,
    Lark,
    NamedSchema,
    Raw,
    Regex,
    StructuredOutputs,
)
from router.api.errors import Invalid
from router.api.openai_structs import CommonFields
from router.api.tgi_structs import Parameters
from router.grammar import constraint
from router.grammar.constraint import Constraint, GrammarError, Reason

# What says of single tokens that they are not to be drawn, or that the answer may not end, could leave none.
_EXCLUDED = ("ignore_eos", "min_tokens", "allowed_token_ids", "bad_words")
_EMPTY = (b"{}", b'""')
_UNSUPPORTED = {
    "structural_tag": "is not supported: a grammar can say the same",
    "whitespace_pattern": "is not supported: JSON is written as Python's json.dumps writes it",
}


class Wanted(msgspec.Struct, frozen=True):
    """A constraint, and the field that asked for it."""

    constraint: Constraint
    field: str

    @property
    def name(self) -> str:
        """The name of the body's field, of which `field` may be a part."""
        return self.field.partition(".")[0]


class Refusal(Invalid):
    """A constraint that is refused. `reason` is what metrics count."""

    def __init__(self, field: str, problem: str, reason: Reason = Reason.INVALID):
        super().__init__(field, problem)
        self.reason = reason

    def called(self, names: Mapping[str, str]) -> Self:
        return type(self)(names.get(self.parameter, self.parameter), self.problem, self.reason)


def of_parameters(asked: Parameters) -> Wanted | None:
    """The constraint in TGI's parameters. Raises `Refusal`."""
    return None if asked.grammar is None else _of_format(asked.grammar, "grammar")


def of_fields(asked: CommonFields) -> Wanted | None:
    """The constraint in OpenAI's and vLLM's fields. Raises `Refusal`."""
    wanted = list(_given(asked, "guided_", ""))
    if asked.structured_outputs is not None:
        wanted += _of_structured_outputs(asked.structured_outputs)
    if asked.response_format is not None:
        wanted += filter(None, [_of_format(asked.response_format, "response_format")])
    return _only(wanted)


def check_together(field: str, asked: Parameters) -> None:
    """Raises `Refusal` for parameters that exclude a constraint; `field` is the one that asks for it."""
    for name in _EXCLUDED:
        if getattr(asked, name):
            raise Refusal(name, f"and `{field}` exclude each other", Reason.CONFLICT)


def refusal_of(error: GrammarError, field: str) -> Refusal:
    """A grammar's error as the refusal of a client's field."""
    return Refusal(field + error.path, error.problem, error.reason)


def _of_format(asked: Format, field: str) -> Wanted | None:
    match asked:
        case JsonObject(value=value, schema=schema):
            given = [*_schemas(value, f"{field}.value"), *_schemas(schema, f"{field}.schema")]
            return _only(given) or Wanted(constraint.any_object(), field)
        case Json(value=value):
            return _made(constraint.schema, bytes(value), f"{field}.value")
        case JsonSchema():
            return _of_json_schema(asked, field)
        case Regex(value=pattern):
            return _made(constraint.regex, pattern, f"{field}.value")
        case Lark(value=grammar):
            return _made(constraint.lark, grammar, f"{field}.value")
    return None


def _of_json_schema(asked: JsonSchema, field: str) -> Wanted:
    """OpenAI's `json_schema`, or TGI's `value`, which has the same fields or is the schema itself."""
    given = list(_of_value(asked.value, f"{field}.value"))
    if asked.json_schema is not None:
        given += _schemas(asked.json_schema.schema, f"{field}.json_schema.schema")
    wanted = _only(given)
    if wanted is None:
        raise Refusal(f"{field}.json_schema.schema", "is missing")
    return wanted


def _of_value(value: Raw, field: str) -> Iterator[Wanted]:
    for whole in _schemas(value, field):
        named = _named(whole.constraint.source)
        yield from (named and list(_schemas(named.schema, f"{field}.schema"))) or [whole]


def _named(source: str) -> NamedSchema | None:
    try:
        return msgspec.json.decode(source, type=NamedSchema)
    except msgspec.DecodeError:
        return None


def _of_structured_outputs(asked: StructuredOutputs) -> Iterator[Wanted]:
    for name, problem in _UNSUPPORTED.items():
        if getattr(asked, name):
            raise Refusal(f"structured_outputs.{name}", problem, Reason.UNSUPPORTED)
    yield from _given(asked, "", "structured_outputs.")
    if asked.json_object:
        yield Wanted(constraint.any_object(), "structured_outputs.json_object")


def _given(asked: Any, prefix: str, at: str) -> Iterator[Wanted]:
    """The constraints in vLLM's four fields, with or without their prefix. An empty field is none."""
    yield from _schemas(getattr(asked, f"{prefix}json"), f"{at}{prefix}json", *_EMPTY)
    kinds: dict[str, Callable[[Any], Constraint]] = {
        "regex": constraint.regex,
        "choice": constraint.choice,
        "grammar": constraint.lark,
    }
    for name, make in kinds.items():
        if value := getattr(asked, prefix + name):
            yield _made(make, value, f"{at}{prefix}{name}")


def _only(wanted: list[Wanted]) -> Wanted | None:
    if len(wanted) > 1:
        raise Refusal(wanted[1].field, f"and `{wanted[0].field}` exclude each other", Reason.CONFLICT)
    return wanted[0] if wanted else None


def _schemas(raw: Raw, field: str, *nothing: bytes) -> Iterator[Wanted]:
    """The schema's constraint; none for a missing schema, null, or one of `nothing`."""
    given = b"null" if raw is msgspec.UNSET else bytes(raw)
    if given not in (b"null", *nothing):
        yield _made(constraint.schema, given, field)


def _made(make: Callable[[Any], Constraint], value: Any, field: str) -> Wanted:
    with _grammar_errors(field):
        return Wanted(make(value), field)


@contextmanager
def _grammar_errors(field: str) -> Iterator[None]:
    try:
        yield
    except GrammarError as error:
        raise refusal_of(error, field) from None
