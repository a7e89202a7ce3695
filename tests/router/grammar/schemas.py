"""Schemas of every kind that is supported, each with a strategy for values that are valid under it."""

from collections.abc import Callable, Collection
from typing import Any

from hypothesis import strategies as st

Schema = dict[str, Any]
Case = tuple[Schema, st.SearchStrategy[Any]]  # a schema, and values of it

NAMES = ("a", "b", "name", "zwei Wörter", 'q"uote', "x.y")
PATTERNS = (r"[a-z]{2,5}", r"[0-9]{3}-[0-9]{4}", r"(red|green)", r"[A-Z][a-z]*( [A-Z][a-z]*)*")
FORMATS = {
    "date": ("2024-02-29", "1999-12-31"),
    "time": ("12:30:00Z", "23:59:59.5+02:00"),
    "date-time": ("2024-02-29T12:30:00Z",),
    "uuid": ("123e4567-e89b-12d3-a456-426614174000",),
    "ipv4": ("127.0.0.1",),
    "email": ("a.b@example.org",),
    "duration": ("P3D", "PT4H"),
    "hostname": ("example.org",),
    "ipv6": ("::1", "2001:db8:0:1:1:1:1:1"),
    "uri": ("https://example.org/a?b=c#d", "mailto:a@b.c"),
}
CONTROLS = [chr(code) for code in (*range(8), 11, *range(14, 32), 127)]  # that JSON writes as \u alone
LETTERS = st.characters(codec="utf-8", exclude_characters=CONTROLS)
TEXTS = st.text(LETTERS, max_size=8)
INTEGERS = st.integers(-(10**6), 10**6)
SCALARS = st.one_of(st.none(), st.booleans(), INTEGERS, TEXTS)


@st.composite
def integers(draw: st.DrawFn) -> Case:
    low, high = draw(st.none() | st.integers(-50, 50)), draw(st.none() | st.integers(60, 5000))
    schema: Schema = {"type": "integer"}
    if low is not None:
        schema[draw(st.sampled_from(["minimum", "exclusiveMinimum"]))] = low
    if high is not None:
        schema[draw(st.sampled_from(["maximum", "exclusiveMaximum"]))] = high
    first = (-(10**6) if low is None else low) + ("exclusiveMinimum" in schema)
    last = (10**6 if high is None else high) - ("exclusiveMaximum" in schema)
    if draw(st.booleans()):
        return schema, st.integers(first, last)
    factor = draw(st.integers(1, 5))
    values = st.integers(-(-first // factor), last // factor).map(lambda n: n * factor)
    return schema | {"multipleOf": factor}, values


@st.composite
def numbers(draw: st.DrawFn) -> Case:
    if draw(st.booleans()):
        return {"type": "number"}, st.decimals(-1000, 1000, places=2).map(float)
    low, high = draw(st.integers(-50, 0)), draw(st.integers(1, 50))
    schema = {"type": "number", "minimum": low, "maximum": high}
    return schema, st.decimals(low, high, places=3).map(float)


@st.composite
def strings(draw: st.DrawFn) -> Case:
    match draw(st.sampled_from(["any", "length", "pattern", "format"])):
        case "length":
            least, most = draw(st.integers(0, 3)), draw(st.integers(3, 6))
            schema = {"type": "string", "minLength": least, "maxLength": most}
            return schema, st.text(LETTERS, min_size=least, max_size=most)
        case "pattern":
            pattern = draw(st.sampled_from(PATTERNS))
            return {"type": "string", "pattern": f"^{pattern}$"}, st.from_regex(pattern, fullmatch=True)
        case "format":
            kind = draw(st.sampled_from(sorted(FORMATS)))
            return {"type": "string", "format": kind}, st.sampled_from(FORMATS[kind])
    return {"type": "string"}, TEXTS


@st.composite
def constants(draw: st.DrawFn) -> Case:
    some = st.dictionaries(st.sampled_from(NAMES), SCALARS, max_size=2)
    values = st.one_of(SCALARS, st.lists(SCALARS, max_size=2), some)
    few = draw(st.lists(values, min_size=1, max_size=4))
    return ({"const": few[0]} if len(few) == 1 else {"enum": few}), st.sampled_from(few)


@st.composite
def arrays(draw: st.DrawFn, inner: st.SearchStrategy[Case]) -> Case:
    item, values = draw(inner)
    match draw(st.sampled_from(["any", "length", "tuple"])):
        case "length":
            least, most = draw(st.integers(0, 2)), draw(st.integers(2, 4))
            schema = {"type": "array", "items": item, "minItems": least, "maxItems": most}
            return schema, st.lists(values, min_size=least, max_size=most)
        case "tuple":
            first, firsts = draw(inner)
            schema = {"type": "array", "prefixItems": [first, item], "items": False, "minItems": 2}
            return schema, st.tuples(firsts, values).map(list)
    return {"type": "array", "items": item}, st.lists(values, max_size=3)


@st.composite
def objects(draw: st.DrawFn, inner: st.SearchStrategy[Case]) -> Case:
    names = draw(st.lists(st.sampled_from(NAMES), unique=True, max_size=3))
    cases = {name: draw(inner) for name in names}
    required = [name for name in names if draw(st.booleans())]
    schema: Schema = {"type": "object", "properties": {name: case[0] for name, case in cases.items()}}
    if required or draw(st.booleans()):
        schema["required"] = required
    more, mores = draw(inner)
    others: st.SearchStrategy[dict[str, Any]] = st.just({})
    match draw(st.sampled_from(["silent", "closed", "open", "of a schema", "by pattern"])):
        case "closed":
            schema["additionalProperties"] = False
        case "open":
            schema["additionalProperties"] = True
            others = st.dictionaries(OTHER_NAMES, SCALARS, max_size=2)
        case "of a schema":
            schema["additionalProperties"] = more
            others = st.dictionaries(OTHER_NAMES, mores, max_size=2)
        case "by pattern":
            schema |= {"patternProperties": {"^z[0-9]+$": more}, "additionalProperties": False}
            others = st.dictionaries(st.from_regex(r"z[0-9]{1,3}", fullmatch=True), mores, max_size=2)
    optional = {name for name in names if name not in required}
    named = in_order({name: case[1] for name, case in cases.items()}, optional)
    return schema, st.tuples(named, others).map(lambda drawn: drawn[0] | drawn[1])


def in_order(
    values: dict[str, st.SearchStrategy[Any]], optional: Collection[str] = ()
) -> st.SearchStrategy[dict[str, Any]]:
    """An object with its keys in this order, in which grammars have them."""

    @st.composite
    def drawn(draw: st.DrawFn) -> dict[str, Any]:
        there = [name for name in values if name not in optional or draw(st.booleans())]
        return {name: draw(values[name]) for name in there}

    return drawn()


OTHER_NAMES = TEXTS.filter(lambda name: name not in NAMES)


@st.composite
def unions(draw: st.DrawFn, inner: st.SearchStrategy[Case]) -> Case:
    (one, ones), (other, others) = draw(inner), draw(inner)
    return {"anyOf": [one, other]}, ones | others


@st.composite
def tagged_unions(draw: st.DrawFn, inner: st.SearchStrategy[Case]) -> Case:
    """Alternatives that a constant tells apart."""
    cases = [draw(inner) for _ in range(2)]
    alternatives, values = [], []
    for index, (schema, inners) in enumerate(cases):
        properties = {"kind": {"const": index}, "of": schema}
        alternatives.append({"type": "object", "properties": properties, "required": ["kind", "of"]})
        values.append(in_order({"kind": st.just(index), "of": inners}))
    return {"oneOf": alternatives}, st.one_of(values)


@st.composite
def joined(draw: st.DrawFn, inner: st.SearchStrategy[Case]) -> Case:
    """Of several schemas at once."""
    (one, ones), (other, others) = draw(inner), draw(inner)
    parts = [
        {"type": "object", "properties": {"one": one}, "required": ["one"]},
        {"type": "object", "properties": {"other": other}, "required": ["other"]},
    ]
    return {"allOf": parts}, in_order({"one": ones, "other": others})


@st.composite
def trees(draw: st.DrawFn, inner: st.SearchStrategy[Case]) -> Case:
    """A schema that refers to itself."""
    leaf, leaves = draw(inner)
    node = {
        "type": "object",
        "properties": {"leaf": leaf, "children": {"type": "array", "items": {"$ref": "#/$defs/node"}}},
        "required": ["leaf", "children"],
    }
    bottom = in_order({"leaf": leaves, "children": st.just([])})

    def above(below: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
        return in_order({"leaf": leaves, "children": st.lists(below, max_size=2)})

    return {"$ref": "#/$defs/node", "$defs": {"node": node}}, st.recursive(bottom, above, max_leaves=3)


LEAVES = st.one_of(
    st.just(({"type": "null"}, st.none())),
    st.just(({"type": "boolean"}, st.booleans())),
    st.just(({"type": ["string", "null"]}, st.none() | TEXTS)),
    integers(),
    numbers(),
    strings(),
    constants(),
)
CONTAINERS: tuple[Callable[[st.SearchStrategy[Case]], st.SearchStrategy[Case]], ...] = (
    arrays,
    objects,
    unions,
    tagged_unions,
    joined,
)


def _around(inner: st.SearchStrategy[Case]) -> st.SearchStrategy[Case]:
    return st.one_of([container(inner) for container in CONTAINERS])


NESTED = st.recursive(LEAVES, _around, max_leaves=6)
CASES: st.SearchStrategy[Case] = st.one_of(NESTED, objects(NESTED), trees(LEAVES))
