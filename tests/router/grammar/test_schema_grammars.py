"""Grammars of generated schemas: they accept what is valid, refuse what is not, and write what is valid."""

import copy
import json
from typing import Any

import jsonschema_rs
from hypothesis import HealthCheck, assume, given, note, settings
from hypothesis import strategies as st

from tests.router.grammar.matching import accepts, of_schema, written
from tests.router.grammar.schemas import CASES, Case

MANY = settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))


def is_valid(schema: Any, value: Any) -> bool:
    return jsonschema_rs.validator_for(schema, validate_formats=True).is_valid(value)


def mutated(draw: st.DrawFn, value: Any) -> Any:
    """Something else in one place."""
    if isinstance(value, dict) and value and draw(st.booleans()):
        key = draw(st.sampled_from(sorted(value)))
        return value | {key: mutated(draw, value[key])}
    if isinstance(value, list) and value and draw(st.booleans()):
        index = draw(st.integers(0, len(value) - 1))
        return [*value[:index], mutated(draw, value[index]), *value[index + 1 :]]
    if isinstance(value, dict) and draw(st.booleans()):
        gone = draw(st.sampled_from([*sorted(value), "none"]))
        return {key: inner for key, inner in value.items() if key != gone} | {"new": 1}
    return draw(st.sampled_from([None, True, 7, -1.5, 10**7, "text", "", [], [[]], {}, {"new": None}]))


@MANY
@given(CASES, st.data())
def test_what_is_valid_is_accepted(case: Case, data: st.DataObject) -> None:
    schema, values = case
    value = data.draw(values)
    assert is_valid(schema, value)
    note(json.dumps(schema))
    assert accepts(of_schema(schema), json.dumps(value, ensure_ascii=False)), json.dumps(value)


@MANY
@given(CASES, st.data())
def test_what_is_not_valid_is_refused(case: Case, data: st.DataObject) -> None:
    schema, values = case
    value = data.draw(values)
    other = data.draw(st.composite(lambda draw: mutated(draw, copy.deepcopy(value)))())
    assume(not is_valid(schema, other))
    note(json.dumps(schema))
    assert not accepts(of_schema(schema), json.dumps(other, ensure_ascii=False)), json.dumps(other)


@MANY
@given(CASES, st.integers(0, 2**32))
def test_what_is_written_is_valid(case: Case, seed: int) -> None:
    schema, _ = case
    text = written(of_schema(schema), seed)
    assume(text is not None)
    assert text is not None
    value = json.loads(text)
    assume("Infinity" not in json.dumps(value))  # 1e999 is JSON, and no number of Python's
    note(json.dumps(schema))
    assert is_valid(schema, value), text
