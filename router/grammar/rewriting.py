"""Rewrites a schema so that llguidance takes it and every answer is valid under the original. Pure.

- `oneOf` becomes `anyOf` where its alternatives exclude each other.
- An object that names its properties, and says nothing of others, gets no others: as in OpenAI's strict mode,
  and a small model would go on adding some.
- Keywords that do not constrain the text are left out, and formats are narrowed to what is valid.
"""

import contextlib
from collections.abc import Iterator
from typing import Any

import msgspec

from router.grammar.formats import EXACT
from router.grammar.json_schema import ANNOTATIONS, TYPES, Schema, children, resolved

_MAX_REFERENCES = 8  # followed from one alternative
_LEFT_OUT = (
    *("x-guidance", "nullable", "uniqueItems", "unevaluatedItems", "unevaluatedProperties", "propertyNames"),
    *("dependencies", "dependentRequired", "dependentSchemas"),
)
_DEFINED = "$format-"
_OF_PARTS = (
    *("items", "additionalItems", "prefixItems", "minItems", "maxItems"),
    *(
        "properties",
        "additionalProperties",
        "patternProperties",
        "required",
        "minProperties",
        "maxProperties",
    ),
)


def rewritten(root: Schema) -> Schema:
    """The schema for llguidance; the given one is not changed."""
    rewriting = _Rewriting(root)
    made: Schema = rewriting.schema(root)
    if rewriting.formats:  # each once: they are long
        exact = {_DEFINED + name: {"allOf": EXACT[name]} for name in sorted(rewriting.formats)}
        made["$defs"] = made.get("$defs", {}) | exact
    return made


class _Rewriting:
    def __init__(self, root: Schema):
        self._root = root
        self._merged = _merged(root)
        self.formats: set[str] = set()  # that `EXACT` has, as far as they were seen

    def schema(self, given: Any) -> Any:
        if not isinstance(given, dict):
            return given
        made: Schema = {}
        exact: list[Schema] = []
        for key, value in given.items():
            if key in _LEFT_OUT or (key == "format" and value in ANNOTATIONS):
                continue
            if key == "format" and value in EXACT:
                self.formats.add(value)
                exact = [{"$ref": f"#/$defs/{_DEFINED}{value}"}]
                continue
            made[self._name(key, value, given)] = self._value(key, value)
        if id(given) not in self._merged and _is_silent_about_others(given):
            made["additionalProperties"] = False
        return made | {"allOf": made.get("allOf", []) + exact} if exact else made

    def _value(self, key: str, value: Any) -> Any:
        match key:
            case "properties" | "patternProperties" | "$defs" | "definitions":
                return {name: self.schema(child) for name, child in value.items()}
            case "anyOf" | "oneOf" | "allOf" | "prefixItems" | "items" if isinstance(value, list):
                return [self.schema(child) for child in value]
            case "additionalProperties" | "additionalItems" | "items":
                return self.schema(value)
            case _:
                return value

    def _name(self, key: str, value: Any, given: Schema) -> str:
        is_safe = key == "oneOf" and "anyOf" not in given and isinstance(value, list)
        return "anyOf" if is_safe and self._exclude_each_other(value) else key

    def _exclude_each_other(self, alternatives: list[Any]) -> bool:
        return all(
            self._disjoint(one, other, 0)
            for index, one in enumerate(alternatives)
            for other in alternatives[index + 1 :]
        )

    def _disjoint(self, one: Any, other: Any, depth: int) -> bool:
        """True if no value is valid under both; False also where that is hard to see."""
        one, other = self._followed(one), self._followed(other)
        if not isinstance(one, dict) or not isinstance(other, dict) or depth > _MAX_REFERENCES:
            return False
        if not _types(one) & _types(other):
            return True
        values, others = _values(one), _values(other)
        if values is not None and others is not None:
            return not values & others
        if _types(one) != {"object"} or _types(other) != {"object"}:
            return False
        return self._differ_in_a_property(one, other, depth) or _lacks(one, other) or _lacks(other, one)

    def _differ_in_a_property(self, one: Schema, other: Schema, depth: int) -> bool:
        named = _properties(one).keys() & _properties(other).keys() & (_required(one) | _required(other))
        return any(
            self._disjoint(_properties(one)[name], _properties(other)[name], depth + 1) for name in named
        )

    def _followed(self, schema: Any) -> Any:
        """The schema, or the target of its `$ref`, which keywords beside it only narrow."""
        for _ in range(_MAX_REFERENCES):
            if not isinstance(schema, dict) or "$ref" not in schema:
                return schema
            schema = resolved(self._root, schema["$ref"])
        return None


def _types(schema: Schema) -> set[str]:
    """The types that a schema allows; an integer is a number."""
    values = _values(schema)
    if values is not None:
        return {kind for kind, _ in values}
    given = schema.get("type", list(TYPES))
    types = {given} if isinstance(given, str) else set(given)
    return {"number" if kind == "integer" else kind for kind in types}


def _values(schema: Schema) -> set[tuple[str, bytes]] | None:
    """The values of a const or an enum, each with its type; None without either."""
    if "const" in schema:
        return {_value(schema["const"])}
    return set(map(_value, schema["enum"])) if isinstance(schema.get("enum"), list) else None


def _value(value: Any) -> tuple[str, bytes]:
    """A value with its type; equal where JSON Schema takes values for equal: 1.0 is 1."""
    match value:
        case None:
            kind = "null"
        case bool():
            kind = "boolean"
        case int() | float():
            kind = "number"
            with contextlib.suppress(OverflowError):
                value = float(value)
        case str():
            kind = "string"
        case list():
            return "array", b""  # never told apart
        case _:
            return "object", b""
    return kind, msgspec.json.encode(value)


def _properties(schema: Schema) -> Schema:
    properties: Schema = schema.get("properties", {})
    return properties


def _required(schema: Schema) -> set[str]:
    required = schema.get("required", [])
    return {name for name in required if isinstance(name, str)} if isinstance(required, list) else set()


def _lacks(one: Schema, other: Schema) -> bool:
    """The other requires a property that the first one forbids."""
    closed = one.get("additionalProperties") is False and "patternProperties" not in one
    return closed and bool(_required(other) - _properties(one).keys())


def _is_silent_about_others(schema: Schema) -> bool:
    """True if it names its properties, required ones included, and says nothing of others."""
    if "properties" not in schema or "additionalProperties" in schema or "patternProperties" in schema:
        return False
    num_required = schema.get("minProperties", 0)
    enough = isinstance(num_required, int) and num_required <= len(_required(schema))
    return enough and _required(schema) <= _properties(schema).keys()


def _merged(root: Schema) -> set[int]:
    """The `id` of each subschema that applies to a value together with others.

    If one of them were closed, it would forbid the properties of the others.
    """
    found: set[int] = set()
    waiting = [schema for schema in _all(root) if _combines(schema)]
    while waiting:
        schema = waiting.pop()
        if not isinstance(schema, dict) or id(schema) in found:
            continue
        found.add(id(schema))
        waiting += [child for _, child in children(schema)]
        if "$ref" in schema:
            waiting.append(resolved(root, schema["$ref"]))
    return found


def _all(root: Any) -> Iterator[Schema]:
    waiting = [root]
    while waiting:
        schema = waiting.pop()
        if isinstance(schema, dict):
            yield schema
            waiting += [child for _, child in children(schema)]


def _combines(schema: Schema) -> bool:
    """True if several of its parts apply to the same value."""
    num_parts = len(schema["allOf"]) if isinstance(schema.get("allOf"), list) else 0
    num_parts += sum(key in schema for key in ("anyOf", "oneOf", "$ref"))
    return num_parts + any(key in schema for key in _OF_PARTS) > 1 and num_parts > 0
