"""docs/structured-output.md names every bound, format and refused keyword there is."""

from pathlib import Path

from router.grammar.checker import BOUNDS
from router.grammar.constraint import MAX_CHOICES, MAX_REGEX_CHARACTERS, MAX_SOURCE_BYTES, Reason
from router.grammar.json_schema import (
    FORMATS,
    MAX_DEPTH,
    MAX_ENUM_VALUES,
    MAX_OPTIONAL,
    MAX_PROPERTIES,
    UNSUPPORTED,
)

PAGE = (Path(__file__).parents[3] / "docs" / "structured-output.md").read_text(encoding="utf-8")
HISTORICAL = {"extends", "disallow", "divisibleBy"}  # of drafts that nobody writes


def test_every_bound_stands_in_the_table() -> None:
    rows = [line for line in PAGE.splitlines() if line.startswith("| ") and line.count("|") == 3]
    bounds = {
        f"{MAX_SOURCE_BYTES} bytes",
        str(MAX_DEPTH),
        str(MAX_PROPERTIES),
        str(MAX_OPTIONAL),
        str(MAX_ENUM_VALUES),
        str(MAX_CHOICES),
        f"{MAX_REGEX_CHARACTERS} characters",
        f"{BOUNDS.processor_s:g} s",
    }
    assert bounds <= {row.split("|")[2].strip() for row in rows}


def test_every_format_keyword_and_reason_is_named() -> None:
    for name in (*FORMATS, *(UNSUPPORTED.keys() - HISTORICAL), *Reason):
        assert f"`{name}`" in PAGE, name
