"""The values of a TOML file with their line numbers for error messages; tomllib does not give those."""

import re
import tomllib
from pathlib import Path
from typing import Any

import msgspec

_TABLE = re.compile(r"\s*(\[\[?)\s*([\w.\"' -]+?)\s*\]")
_KEY = re.compile(r"\s*([\w-]+(?:\s*\.\s*[\w-]+)*)\s*=")
_STEP = re.compile(r"([\w-]+)|\[(\d+)\]")

Place = tuple[str | int, ...]  # such as ("candidate", 0, "depths")


class TomlError(ValueError):
    """An unusable file. The message is one sentence with line and field."""


class TomlText(msgspec.Struct, frozen=True):
    """The values of a file and their places."""

    path: Path
    values: dict[str, Any]
    lines: dict[Place, int]

    def line_of(self, place: Place) -> int:
        """The line of a value, or of the table around it if the value is missing."""
        while place and place not in self.lines:
            place = place[:-1]
        return self.lines.get(place, 1)

    def complain(self, error: msgspec.ValidationError) -> TomlError:
        """msgspec's message about a value, with the value's line."""
        sentence, _, path = str(error).partition(" - at ")
        place = _place_of(path)
        if unknown := re.search(r"unknown field `(.+?)`", sentence):
            place = (*place, unknown[1])
            sentence = "is no setting"
        elif missing := re.search(r"missing required field `(.+?)`", sentence):
            place = (*place, missing[1])
            sentence = "is missing"
        else:
            sentence = sentence[:1].lower() + sentence[1:].replace("`", "")
        return TomlError(f"{self.path}, line {self.line_of(place)}: {written(place)}: {sentence}.")


def read_toml(path: Path) -> TomlText:
    """Raises `TomlError` when the file cannot be read, or is no TOML."""
    try:
        text = path.read_text(encoding="utf-8")
        return TomlText(path, tomllib.loads(text), dict(_lines(text)))
    except OSError as error:
        raise TomlError(f"{path} cannot be read: {error.strerror}.") from None
    except ValueError as error:
        raise TomlError(f"{path} is not valid TOML: {error}.") from None


def written(place: Place) -> str:
    """A place as a person would name it: candidate 2, figures.quality."""
    if len(place) > 1 and isinstance(place[1], int):
        rest = written(place[2:])
        return f"{place[0]} {place[1] + 1}" + (f", {rest}" if rest else "")
    return ".".join(str(part) for part in place)


def _lines(text: str) -> list[tuple[Place, int]]:
    """The place and line of every table and key. Look-alikes inside a multi-line text do no harm."""
    found: list[tuple[Place, int]] = []
    table: Place = ()
    counts: dict[str, int] = {}
    for number, line in enumerate(text.splitlines(), 1):
        if header := _TABLE.match(line):
            first, *rest = (part.strip(" \"'") for part in header[2].split("."))
            if header[1] == "[[" and not rest:
                counts[first] = counts.get(first, -1) + 1
            table = (first, counts[first], *rest) if first in counts else (first, *rest)
            found.append((table, number))
        elif key := _KEY.match(line):
            found.append(((*table, *(part.strip() for part in key[1].split("."))), number))
    return found


def _place_of(path: str) -> Place:
    """`$.candidate[0].depths[1]` -> ("candidate", 0, "depths"): an element stands on its list's line."""
    steps = [name or int(index) for name, index in _STEP.findall(path.strip("`").removeprefix("$"))]
    return tuple(steps[:-1] if len(steps) > 2 and isinstance(steps[-1], int) else steps)
