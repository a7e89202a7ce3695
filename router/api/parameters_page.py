"""Writes docs/parameters.md from bodies and tables of fields: `python -m router.api.parameters_page`."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import msgspec

from router.api.fields import DIALECTS, HARMLESS, REFUSED, Unsupported

_HEAD = """\
# Parameters

Made from `router/api/fields.py` and the structs beside it by `make docs`; a test holds it to them.

A field is *honoured*, or it is *refused* by name since it would change the text and is not supported (422 on
TGI's routes, 400 on `/v1`), or it is *harmless* and accepted, like any field that nobody knows. null, `""`,
`[]` and `{}` say nothing where a field is refused; tools may be named where `tool_choice` is "none". `/` and
`/generate_stream` take what `/generate` takes, under `parameters`; `/invocations` takes any of the bodies but
the last, and `/chat_tokenize` that of a chat.
"""


def page() -> str:
    parts = {"Honoured": _honoured(), "Refused": _refused(), "Harmless": _harmless()}
    tables = [f"## {name}\n\n" + "\n".join(lines) + "\n" for name, lines in parts.items()]
    return "\n".join([_HEAD, *tables])


def _honoured() -> Iterable[str]:
    """One line per field in the order of the bodies, or two where dialects accept different values."""
    places: dict[tuple[str, str, str], list[str]] = {}
    for dialect in DIALECTS:
        for name, schema in _properties(dialect.parameters or dialect.body).items():
            key = (name, _values(schema), schema.get("description", ""))
            places.setdefault(key, []).append(dialect.name)
    yield "| field | " + " | ".join(f"`{dialect.name}`" for dialect in DIALECTS) + " | values | |"
    yield "|---|" + "---|" * (len(DIALECTS) + 2)
    for (name, values, description), where in sorted(places.items(), key=_by_name(places)):
        marks = " | ".join("yes" if dialect.name in where else "" for dialect in DIALECTS)
        yield f"| `{name}` | {marks} | {values} | {description} |"


def _by_name(places: Iterable[tuple[str, str, str]]) -> Callable[[Any], int]:
    """Sort key that puts a line beside the first line of its field."""
    first: dict[str, int] = {}
    for at, (name, _, _) in enumerate(places):
        first.setdefault(name, at)
    return lambda line: first[line[0][0]]


def _properties(body: type[msgspec.Struct]) -> dict[str, Any]:
    _, schemas = msgspec.json.schema_components([body])
    found: dict[str, Any] = schemas[body.__name__]["properties"]
    return found


def _values(schema: Mapping[str, Any]) -> str:
    """The accepted values in few words, without null, which every optional field takes."""
    alternatives = [_value(part) for part in schema.get("anyOf", [schema])]
    return " or ".join(part for part in dict.fromkeys(alternatives) if part)


def _value(schema: Mapping[str, Any]) -> str:
    match schema.get("type"):
        case "null":
            return ""
        case "array":
            return f"list of {_values(schema.get('items', {})) or 'values'}"
        case None:
            return "object" if "$ref" in schema else _values(schema) if "anyOf" in schema else ""
        case kind:
            return ", ".join([str(kind), *_bounds(schema)])


def _bounds(schema: Mapping[str, Any]) -> list[str]:
    signs = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
    return [f"{sign} {schema[bound]}" for bound, sign in signs.items() if bound in schema]


def _refused() -> Iterable[str]:
    """Fields with the same reason on one line, unless a dialect honours them all."""
    groups: dict[tuple[str, str], list[str]] = {}
    for name, unsupported in REFUSED.items():
        groups.setdefault((unsupported.why, _neutral(unsupported)), []).append(name)
    yield "| field, where it is not honoured | why | taken all the same |"
    yield "|---|---|---|"
    for (why, neutral), names in groups.items():
        yield f"| {_names(names)} | {why} | {neutral} |"


def _neutral(unsupported: Unsupported) -> str:
    return ", ".join(f"`{msgspec.json.encode(value).decode()}`" for value in unsupported.neutral)


def _harmless() -> Iterable[str]:
    groups: dict[str, list[str]] = {}
    for name, why in HARMLESS.items():
        groups.setdefault(why, []).append(name)
    yield "| field, where it is not honoured | what it is |"
    yield "|---|---|"
    for why, names in groups.items():
        yield f"| {_names(names)} | {why} |"


def _names(names: Iterable[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)


if __name__ == "__main__":
    print(page(), end="")
