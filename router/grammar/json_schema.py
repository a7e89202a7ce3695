"""Finds the subschemas of a JSON Schema, checks bounds, and refuses what is not supported. Pure.

llguidance names an unsupported keyword without its place, and skips keywords that the schema's draft does
not know. So keywords are checked here first.
"""

import re
from collections.abc import Iterator
from typing import Any
from urllib.parse import unquote

from router.grammar.constraint import GrammarError, Reason

Schema = dict[str, Any]

MAX_DEPTH = 64  # schemas within each other
MAX_PROPERTIES = 2_000  # of all its objects
MAX_OPTIONAL = 400  # of one object: each is several items of the parser's row, which has at most 2000
MAX_ENUM_VALUES = 5_000  # of all its enums
MAX_NUMBER = 2**53  # beyond it llguidance reads integers inexactly, as many a JSON parser does
TYPES = ("null", "boolean", "integer", "number", "string", "array", "object")
FORMATS = ("date-time", "time", "date", "duration", "email", "hostname", "ipv4", "ipv6", "uuid", "uri")
# Formats of OpenAPI and of pydantic, which say nothing of the text.
ANNOTATIONS = (
    *("binary", "byte", "base64", "base64url", "password", "path", "file-path", "directory-path"),
    *("json-string", "color", "int32", "int64", "uint32", "uint64", "float", "double", "decimal"),
)
# Keywords that say what is valid, and which value of theirs says nothing.
UNSUPPORTED: dict[str, Any] = {
    "not": None,
    "if": None,
    "then": None,
    "else": None,
    "contains": None,
    "minContains": None,
    "maxContains": None,
    "uniqueItems": False,
    "propertyNames": {"type": "string"},
    "dependencies": {},
    "dependentRequired": {},
    "dependentSchemas": {},
    "unevaluatedProperties": True,
    "unevaluatedItems": True,
    "$dynamicRef": None,
    "$recursiveRef": None,
    "extends": None,
    "disallow": None,
    "divisibleBy": None,
    "nullable": False,
}
_WITH_ONE = ("additionalProperties", "items", "additionalItems")
_WITH_LIST = ("anyOf", "oneOf", "allOf", "prefixItems", "items")
_WITH_NAMES = ("properties", "patternProperties", "$defs", "definitions")
_WITH_VALUES = ("const", "enum", "minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf")
_CONTROL = re.compile(r"[\x00-\x07\x0b\x0e-\x1f\x7f]")  # that JSON writes as \u alone, but for the last
_PLAIN = re.compile(r"[A-Za-z_$][\w$-]*")


def path_part(key: str | int) -> str:
    """The path from a value to one of its members."""
    if isinstance(key, int):
        return f"[{key}]"
    return f".{key}" if _PLAIN.fullmatch(key) else f"[{key!r}]"


def children(schema: Schema) -> Iterator[tuple[str, Any]]:
    """Every subschema, with the path that leads to it."""
    for key in _WITH_ONE:
        if isinstance(schema.get(key), dict | bool):
            yield path_part(key), schema[key]
    for key in _WITH_LIST:
        if isinstance(schema.get(key), list):
            for index, child in enumerate(schema[key]):
                yield path_part(key) + path_part(index), child
    for key in _WITH_NAMES:
        if isinstance(schema.get(key), dict):
            for name, child in schema[key].items():
                yield path_part(key) + path_part(name), child


def resolved(root: Schema, reference: Any) -> Any:
    """The target of a `$ref` within its schema; None if it is no JSON pointer to a part of it."""
    if not isinstance(reference, str) or not reference.startswith("#"):
        return None
    if reference[1:2] not in ("", "/"):
        return None
    found: Any = root
    for part in unquote(reference[1:]).split("/")[1:]:
        key = part.replace("~1", "/").replace("~0", "~")
        if isinstance(found, dict) and key in found:
            found = found[key]
        elif isinstance(found, list) and key.isdecimal() and int(key) < len(found):
            found = found[int(key)]
        else:
            return None
    return found


def check(root: Any) -> None:
    """Raises GrammarError, with a path, for what exceeds a bound or is not supported."""
    if not isinstance(root, dict):
        raise GrammarError("must be a JSON Schema, which is an object")
    num_properties = num_values = 0
    waiting: list[tuple[Any, str, int]] = [(root, "", 1)]
    while waiting:
        schema, path, depth = waiting.pop()
        if isinstance(schema, bool):
            continue
        if not isinstance(schema, dict):
            raise GrammarError("must be a schema: an object, true or false", path)
        if depth > MAX_DEPTH:
            raise GrammarError(f"must be nested at most {MAX_DEPTH} schemas deep", reason=Reason.BOUND)
        _check_keywords(schema, path)
        _check_reference(root, schema, path)
        num_properties += len(schema.get("properties", ()))
        num_values += len(schema["enum"]) if isinstance(schema.get("enum"), list) else 0
        waiting += [(child, path + at, depth + 1) for at, child in children(schema)]
    if num_properties > MAX_PROPERTIES:
        problem = f"must have at most {MAX_PROPERTIES} properties. Given: {num_properties}"
        raise GrammarError(problem, reason=Reason.BOUND)
    if num_values > MAX_ENUM_VALUES:
        problem = f"must have at most {MAX_ENUM_VALUES} values in enums. Given: {num_values}"
        raise GrammarError(problem, reason=Reason.BOUND)
    _check_ends(root)


def _check_ends(root: Schema) -> None:
    """Refuse schemas whose values would hold themselves without end: a list whose `next` is required."""
    found = _reachable(root)
    ending: set[int] = set()
    while True:
        before = len(ending)
        for schema in reversed(found.values()):
            if id(schema) not in ending and _ends(root, schema, ending):
                ending.add(id(schema))
        if len(ending) == before:
            break
    for path, schema in found.items():
        if id(schema) not in ending and "$ref" not in schema:
            raise GrammarError("fits nothing: its values would hold themselves without end", path)


def _reachable(root: Schema) -> dict[str, Schema]:
    """The schemas that apply to a value or to its parts, each once, by path."""
    found: dict[str, Schema] = {}
    seen: set[int] = set()
    waiting: list[tuple[str, Any]] = [("", root)]
    while waiting:
        path, schema = waiting.pop()
        if not isinstance(schema, dict) or id(schema) in seen:
            continue
        seen.add(id(schema))
        found[path] = schema
        if "$ref" in schema:
            target = schema["$ref"].removeprefix("#").replace("/", ".")
            waiting.append((target, resolved(root, schema["$ref"])))
        waiting += [
            (path + at, child)
            for at, child in children(schema)
            if not at.startswith((".$defs", ".definitions"))
        ]
    return found


def _ends(root: Schema, schema: Schema, ending: set[int]) -> bool:
    """True if a value can end, where those of `ending` can. True also where that is hard to see."""

    def ends(part: Any) -> bool:
        return not isinstance(part, dict) or id(part) in ending

    if "$ref" in schema and not ends(resolved(root, schema["$ref"])):
        return False
    for key in ("anyOf", "oneOf"):
        if isinstance(schema.get(key), list) and not any(map(ends, schema[key])):
            return False
    parts: list[Any] = schema["allOf"] if isinstance(schema.get("allOf"), list) else []
    if schema.get("type") == "object" and isinstance(schema.get("required"), list):
        properties = schema.get("properties", {})
        parts = parts + [properties.get(name) for name in schema["required"] if isinstance(name, str)]
    least = schema.get("minItems", 0)
    if schema.get("type") == "array" and isinstance(least, int) and least > 0:
        first = schema["prefixItems"][:least] if isinstance(schema.get("prefixItems"), list) else []
        parts = parts + first + [schema.get("items")] * (least > len(first))
    return all(map(ends, parts))


def _check_keywords(schema: Schema, path: str) -> None:
    for key, value in schema.items():
        if key in UNSUPPORTED and value != UNSUPPORTED[key]:
            raise GrammarError("is not supported" + _instead(key), path + path_part(key), Reason.UNSUPPORTED)
        if key in _WITH_NAMES and not isinstance(value, dict):
            raise GrammarError("must be an object of schemas", path + path_part(key))
        if key in _WITH_VALUES:
            _check_values(value, path + path_part(key))
    _check_numbers_of_properties(schema, path)
    types = schema.get("type", [])
    for kind in types if isinstance(types, list) else [types]:
        if kind not in TYPES:
            raise GrammarError(f"must be of {', '.join(TYPES)}. Given: {kind}", path + ".type")
    known = schema.get("format", "uuid")
    if known not in (*FORMATS, *ANNOTATIONS):
        problem = f"must be of {', '.join(FORMATS)}. Given: {known}"
        raise GrammarError(problem, path + ".format", Reason.UNSUPPORTED)


def _check_numbers_of_properties(schema: Schema, path: str) -> None:
    required = schema.get("required")
    names = {name for name in required if isinstance(name, str)} if isinstance(required, list) else set()
    num_optional = len(schema.get("properties", {}).keys() - names)
    if num_optional > MAX_OPTIONAL:
        problem = f"must have at most {MAX_OPTIONAL} that are not required. Given: {num_optional}"
        raise GrammarError(problem, path + ".properties", Reason.BOUND)
    least = schema.get("minProperties", 0)
    if isinstance(least, int | float) and least > len(names) + 1:
        problem = "must be at most 1 more than `required` names, since other keys could repeat each other"
        raise GrammarError(f"{problem}. Given: {least}", path + ".minProperties", Reason.UNSUPPORTED)


def _check_values(value: Any, path: str) -> None:
    """Refuse values that answers cannot have."""
    waiting = [value]
    while waiting:
        match waiting.pop():
            case int() as number if abs(number) > MAX_NUMBER:
                raise GrammarError(f"must not have integers beyond {MAX_NUMBER}", path, Reason.BOUND)
            case str() as text if _CONTROL.search(text):
                raise GrammarError("must not have control characters", path, Reason.UNSUPPORTED)
            case list() as items:
                waiting += items
            case dict() as members:
                waiting += members.values()


def _instead(key: str) -> str:
    return ': add "null" to `type`' if key == "nullable" else ""


def _check_reference(root: Schema, schema: Schema, path: str) -> None:
    reference = schema.get("$ref")
    if reference is None:
        return
    if not isinstance(reference, str) or not reference.startswith("#"):
        problem = f"must refer to a part of the same schema, `#/...`. Given: {reference}"
        raise GrammarError(problem, path + ".$ref", Reason.UNSUPPORTED)
    if (reference == "#" or reference.startswith("#/")) and resolved(root, reference) is None:
        raise GrammarError(f"refers to nothing in the schema. Given: {reference}", path + ".$ref")
