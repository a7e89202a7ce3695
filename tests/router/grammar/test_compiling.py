"""What is made of constraints, and what is refused of them, where."""

import json
import time
from collections.abc import Iterator
from typing import Any

import pytest

from router.grammar import constraint
from router.grammar.checker import grammar_of as asked
from router.grammar.compiling import grammar_of
from router.grammar.constraint import Constraint, GrammarError, Reason
from router.processes import Processes
from tests.router.grammar.matching import accepts, of_schema

TEXT = {"type": "string"}
CAT = {
    "type": "object",
    "properties": {"kind": {"const": "cat"}, "lives": {"type": "integer"}},
    "required": ["kind"],
}
DOG = {"type": "object", "properties": {"kind": {"enum": ["dog", "hound"]}}, "required": ["kind"]}

NODE = {"type": "object", "properties": {"value": TEXT, "next": {"$ref": "#/$defs/n"}}}
TREE = {"type": "object", "properties": {"children": {"type": "array", "items": {"$ref": "#/$defs/n"}}}}


@pytest.fixture(scope="module")
def processes() -> Iterator[Processes]:
    own = Processes()
    yield own
    own.close()


def refusal(made: Constraint) -> GrammarError:
    with pytest.raises(GrammarError) as caught:
        grammar_of(made)
    return caught.value


@pytest.mark.parametrize(
    ("schema", "path", "problem", "reason"),
    [
        ({"properties": {"a": {"not": TEXT}}}, ".properties.a.not", "is not supported", Reason.UNSUPPORTED),
        ({"items": {"uniqueItems": True}}, ".items.uniqueItems", "is not supported", Reason.UNSUPPORTED),
        ({"anyOf": [TEXT, {"if": TEXT}]}, ".anyOf[1].if", "is not supported", Reason.UNSUPPORTED),
        (
            {"$defs": {"a b": {"contains": 1}}},
            ".$defs['a b'].contains",
            "is not supported",
            Reason.UNSUPPORTED,
        ),
        ({"nullable": True}, ".nullable", 'add "null" to `type`', Reason.UNSUPPORTED),
        ({"propertyNames": {"maxLength": 3}}, ".propertyNames", "is not supported", Reason.UNSUPPORTED),
        ({"items": {"type": "strong"}}, ".items.type", "Given: strong", Reason.INVALID),
        ({"type": [TEXT]}, ".type", "must be of null, boolean", Reason.INVALID),
        ({"properties": {"a": 5}}, ".properties.a", "must be a schema", Reason.INVALID),
        ({"properties": []}, ".properties", "must be an object of schemas", Reason.INVALID),
        ({"format": "ipv9"}, ".format", "Given: ipv9", Reason.UNSUPPORTED),
        ({"items": {"$ref": "https://x/y"}}, ".items.$ref", "part of the same schema", Reason.UNSUPPORTED),
        ({"$ref": "#/$defs/gone"}, ".$ref", "refers to nothing", Reason.INVALID),
        (
            {"items": {"additionalProperties": TEXT, "minProperties": 2}},
            ".items.minProperties",
            "at most 1 more",
            Reason.UNSUPPORTED,
        ),
        (
            {"items": {"properties": {f"p{number}": TEXT for number in range(401)}}},
            ".items.properties",
            "Given: 401",
            Reason.BOUND,
        ),
        (
            {"$defs": {"n": NODE | {"required": ["value", "next"]}}, "items": {"$ref": "#/$defs/n"}},
            ".$defs.n",
            "without end",
            Reason.INVALID,
        ),
        ({"type": "array", "items": {"$ref": "#"}, "minItems": 1}, "", "without end", Reason.INVALID),
        ({"$defs": {"n": NODE | {"required": ["value"]}}, "$ref": "#/$defs/n"}, None, "", Reason.INVALID),
        (
            {"$defs": {"n": TREE | {"required": ["children"]}}, "$ref": "#/$defs/n"},
            None,
            "",
            Reason.INVALID,
        ),
        ({"$ref": "#"}, "", "fits nothing: there is no such text", Reason.INVALID),
        (
            {"properties": {"a": {"anyOf": [TEXT, {"minLength": 3, "maxLength": 2, "type": "string"}]}}},
            None,
            "",
            Reason.INVALID,
        ),
        (
            {"$defs": {"P": {"properties": {"s": {"pattern": "(a"}}}}, "items": {"$ref": "#/$defs/P"}},
            ".$defs.P.properties.s.pattern",
            "unclosed group",
            Reason.UNSUPPORTED,
        ),
        (
            {
                "type": "object",
                "properties": {"a": {"minimum": 3, "maximum": 2, "type": "integer"}},
                "required": ["a"],
            },
            "",
            "fits nothing: required property 'a'",
            Reason.INVALID,
        ),
        (
            {"properties": {"a": {"oneOf": [TEXT, TEXT]}}},
            ".properties.a.oneOf",
            "`anyOf`",
            Reason.UNSUPPORTED,
        ),
        ({"type": "string", "minLength": "x"}, "", "is not supported", Reason.UNSUPPORTED),
        ({"enum": []}, "", "fits nothing", Reason.INVALID),
        ({"enum": [1, {"a": [2**53 + 1]}]}, ".enum", f"integers beyond {2**53}", Reason.BOUND),
        ({"const": ["a\x7f"]}, ".const", "control characters", Reason.UNSUPPORTED),
        ({"enum": ["a\n", "\0"]}, ".enum", "control characters", Reason.UNSUPPORTED),
        ({"items": {"minimum": -(2**60)}}, ".items.minimum", "integers beyond", Reason.BOUND),
        ({"enum": [0] * 5001}, "", "at most 5000 values in enums. Given: 5001", Reason.BOUND),
        (
            {"anyOf": [{"properties": {f"p{n}": {} for n in range(400)}}] * 5 + [CAT]},
            "",
            "at most 2000 properties",
            Reason.BOUND,
        ),
        ([], "", "must be a JSON Schema", Reason.INVALID),
        (True, "", "must be a JSON Schema", Reason.INVALID),
    ],
)
def test_a_schema_is_refused_by_what_is_to_blame(
    schema: Any, path: str | None, problem: str, reason: Reason
) -> None:
    if path is None:
        assert grammar_of(of_schema(schema))  # another alternative is left
        return
    error = refusal(of_schema(schema))
    assert (error.path, error.reason) == (path, reason)
    assert problem in error.problem
    assert "\n" not in error.problem


def test_schemas_may_be_nested_to_a_bound() -> None:
    def nested(depth: int) -> dict[str, Any]:
        return {"items": nested(depth - 1)} if depth > 1 else TEXT

    assert grammar_of(of_schema(nested(64)))
    assert refusal(of_schema(nested(65))).reason is Reason.BOUND
    deep = constraint.schema(b'{"items":' * 5000 + b"true" + b"}" * 5000)
    assert "JSON Schema" in refusal(deep).problem


@pytest.mark.parametrize(
    ("make", "given"),
    [
        (constraint.schema, b'{"const": "%s"}' % (b"a" * 70_000)),
        (constraint.regex, "a" * 8193),
        (constraint.choice, ["a"] * 5001),
        (constraint.choice, ["a" * 70_000]),
        (constraint.lark, "#" * 70_000),
    ],
)
def test_what_is_given_is_bounded_before_it_is_read(make: Any, given: Any) -> None:
    with pytest.raises(GrammarError, match=r"at most|takes 1 to") as caught:
        make(given)
    assert caught.value.reason is Reason.BOUND


def test_json_is_written_as_json_dumps_writes_it() -> None:
    made = of_schema({"type": "object"})
    value = {"a": [1, 2.5, {"é": None}], "b": "x\ny", "c": {}}
    assert accepts(made, json.dumps(value, ensure_ascii=False))
    for other in (
        json.dumps(value, indent=1),
        '{"a":1}',
        '{ "a": 1}',
        ' {"a": 1}',
        '{"a": 1} ',
        "[]",
        "1",
        "",
    ):
        assert not accepts(made, other), other


def test_a_client_does_not_change_how_json_is_written() -> None:
    made = of_schema({"x-guidance": {"whitespace_flexible": True, "lenient": True}, "type": "object"})
    assert not accepts(made, '{ "a":1}')


def test_a_schema_may_be_sent_as_a_text() -> None:
    text = json.dumps({"type": "integer"})
    assert constraint.schema(json.dumps(text).encode()) == constraint.schema(text.encode())


def test_an_object_has_the_properties_that_are_named_and_no_others() -> None:
    schema = {"type": "object", "properties": {"a": {"type": "integer"}, "b": {"properties": {}}}}
    made = of_schema(schema)
    assert accepts(made, '{"a": 1, "b": {}}')
    assert accepts(made, "{}")
    assert not accepts(made, '{"a": 1, "c": 1}')
    assert not accepts(made, '{"b": {"c": 1}}')
    assert accepts(of_schema(schema | {"additionalProperties": True}), '{"a": 1, "c": 1}')
    assert accepts(of_schema(schema | {"required": ["c"]}), '{"a": 1, "c": 1}')
    required = {"properties": {"a": {"type": "integer"}}, "required": ["a"], "type": "object"}
    assert accepts(of_schema(required | {"minProperties": 2}), '{"a": 1, "c": 1}')


def test_objects_that_are_joined_are_not_closed() -> None:
    base = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
    more = {"type": "object", "properties": {"b": {"type": "integer"}}, "required": ["b"]}
    for schema in (
        {"allOf": [base, more]},
        {"$ref": "#/$defs/base", "$defs": {"base": base}} | more,
        base | {"anyOf": [more, {"properties": {"c": TEXT}, "required": ["c"]}]},
    ):
        assert accepts(of_schema(schema), '{"a": 1, "b": 2}') or accepts(
            of_schema(schema), '{"b": 2, "a": 1}'
        )
    assert not accepts(of_schema({"allOf": [base]}), '{"a": 1, "b": 2}')


def test_alternatives_that_exclude_each_other_are_taken() -> None:
    defs = {"Cat": CAT, "Dog": DOG}
    references = [{"$ref": "#/$defs/Cat"}, {"$ref": "#/$defs/Dog"}]
    made = of_schema({"oneOf": references, "$defs": defs, "discriminator": {"propertyName": "kind"}})
    assert accepts(made, '{"kind": "cat", "lives": 9}')
    assert accepts(made, '{"kind": "hound"}')
    assert not accepts(made, '{"kind": "fish"}')
    assert accepts(of_schema({"oneOf": [{"type": "integer"}, TEXT]}), '"a"')
    closed = [
        {"properties": {name: TEXT}, "required": [name], "type": "object", "additionalProperties": False}
        for name in "ab"
    ]
    assert accepts(of_schema({"oneOf": closed}), '{"b": "x"}')
    for pair in ([{"type": "integer"}, {"type": "number"}], [{"const": 1}, {"enum": [1.0, 2]}], [CAT, CAT]):
        assert refusal(of_schema({"oneOf": pair})).path == ".oneOf"


def test_formats_that_say_nothing_of_the_text_are_taken_and_dates_are_those_there_are() -> None:
    assert accepts(of_schema({"type": "string", "format": "password"}), '"x y"')
    date = of_schema({"format": "date", "type": "string", "allOf": [{"pattern": "29$"}]})
    assert accepts(date, '"2024-02-29"')
    assert not accepts(date, '"2023-02-29"')
    assert not accepts(date, '"2024-02-28"')


def test_a_format_is_written_once_into_a_grammar() -> None:
    def grammar(num_dates: int) -> str:
        dates = {f"d{n}": {"type": "string", "format": "date-time"} for n in range(num_dates)}
        return grammar_of(of_schema({"type": "object", "properties": dates}))

    assert len(grammar(200)) - len(grammar(100)) < 100 * 100


def test_a_further_key_does_not_spell_a_property_in_escapes() -> None:
    named = {"type": "object", "properties": {"a": {"type": "integer"}}, "additionalProperties": True}
    made = of_schema(named)
    assert accepts(made, r'{"b\n": "x"}')
    assert not accepts(made, r'{"\u0061": "x"}')


def test_a_choice_is_one_of_the_texts() -> None:
    texts = ["a", "ab", 'q"uo\\te\n', "é😀", "/x/", "\x00"]
    made = constraint.choice(texts)
    assert all(accepts(made, text) for text in texts)
    assert not any(accepts(made, text) for text in ("", "b", "aab", "a "))
    assert accepts(constraint.choice(["", "a"]), "")


def test_as_many_choices_as_are_taken_can_be_followed() -> None:
    texts = [f"v{number}" for number in range(constraint.MAX_CHOICES)]
    made = constraint.choice(texts)
    assert all(accepts(made, text) for text in ("v0", "v49", "v4999"))
    assert not accepts(made, "v5000")


def test_a_row_that_is_too_long_for_the_parser_is_refused_before_it_is_met() -> None:
    alternatives = " | ".join(f'"v{number}"' for number in range(3000))
    error = refusal(constraint.lark(f"start: {alternatives}"))
    assert "too complex" in error.problem
    assert error.reason is Reason.BOUND


def test_as_many_optional_properties_as_are_taken_can_be_followed() -> None:
    named = {"properties": {f"p{number}": {"type": "integer"} for number in range(400)}}
    assert accepts(of_schema({"type": "object"} | named), '{"p0": 1, "p399": 2}')


def test_a_regex_is_matched_by_the_whole_text() -> None:
    for pattern in (r"\d{3}-[a-c]+", r"^\d{3}-[a-c]+$"):
        made = constraint.regex(pattern)
        assert accepts(made, "123-abc")
        assert not accepts(made, "x123-abc")
        assert not accepts(made, "123-abcd")
    for pattern in ("(a", r"\bfoo", "(?=a)b", r"[^\s\S]"):
        assert "\n" not in refusal(constraint.regex(pattern)).problem


def test_a_grammar_is_lark_or_gbnf_and_names_no_tokens() -> None:
    assert accepts(constraint.lark('start: "a" b\nb: /[0-9]+/'), "a12")
    assert accepts(constraint.lark('root ::= "a" ("b" | "c")'), "ac")
    for grammar in ('start: "a" <|im_end|>', "start: <[5]>"):
        assert "special tokens" in refusal(constraint.lark(grammar)).problem
    for grammar in ('start: "a" b', "x", "start: x\nx: y\ny: x"):
        assert refusal(constraint.lark(grammar))


HOSTILE = {
    "multiple": of_schema({"type": "integer", "multipleOf": 999_983}),
    "joined": of_schema({"allOf": [{"anyOf": [{"minimum": n}, {"maxLength": n}] * 6} for n in range(12)]}),
    "references": of_schema(
        {
            "$defs": {f"d{n}": {"allOf": [{"$ref": f"#/$defs/d{n + 1}"}] * 4} for n in range(30)}
            | {"d30": TEXT}
        }
        | {"$ref": "#/$defs/d0"}
    ),
    "repeated": constraint.regex("(((a{1,1000}){1,1000}){1,1000}b){1,1000}"),
    "ambiguous": constraint.regex("(x+x+)+y"),
    "long": of_schema({"type": "string", "minLength": 10**9}),
    "many": of_schema({"type": "array", "items": TEXT, "minItems": 10**9}),
    "lark": constraint.lark('start: x{1,100000}\nx: y{1,100000}\ny: ("a" | "b"){1,100000}'),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_constraint_is_answered_in_short_time(processes: Processes, name: str) -> None:
    started = time.monotonic()
    try:
        asked(processes, HOSTILE[name])
    except GrammarError as error:
        assert error.reason in (Reason.BOUND, Reason.UNSUPPORTED)
    assert time.monotonic() - started < 5  # on a machine that does much else
    assert asked(processes, constraint.regex("a"))


def test_what_takes_too_long_to_compile_is_refused(processes: Processes) -> None:
    with pytest.raises(GrammarError, match=r"more than 0\.3 s") as caught:
        asked(processes, HOSTILE["multiple"])
    assert caught.value.reason is Reason.BOUND


def test_a_refusal_is_told_as_it_is_here(processes: Processes) -> None:
    made = of_schema({"items": {"not": TEXT}})
    with pytest.raises(GrammarError) as caught:
        asked(processes, made)
    here = refusal(made)
    assert (caught.value.path, caught.value.problem, caught.value.reason) == (
        here.path,
        here.problem,
        here.reason,
    )
