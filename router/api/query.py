"""Parameters in a route's address: their bounds, their description, and how they are read."""

import re
from typing import Any

import msgspec
from aiohttp import web

from router.api.errors import Invalid

_NUMBER = re.compile(r"-?[0-9]{1,20}(\.[0-9]{1,20})?")
_MAX_SHOWN = 40  # characters
LATEST = 1e11  # Unix time that may be given


class Number(msgspec.Struct, frozen=True):
    """A number from `least` to `most`."""

    name: str
    description: str
    least: float
    most: float
    is_whole: bool = False

    @property
    def schema(self) -> dict[str, Any]:
        kind = "integer" if self.is_whole else "number"
        return {"type": kind, "minimum": self.least, "maximum": self.most}

    def read(self, http: web.Request, default: float) -> float:
        """Raises `Invalid`."""
        text = _only(http, self.name)
        if text is None:
            return default
        value = float(text) if _NUMBER.fullmatch(text) else None
        if value is None or not self.least <= value <= self.most or (self.is_whole and value % 1):
            kind = "a whole number" if self.is_whole else "a number"
            bounds = f"from {self.least:.15g} to {self.most:.15g}"
            raise Invalid(self.name, f"must be {kind} {bounds}. Given: {text[:_MAX_SHOWN]}")
        return value


class Word(msgspec.Struct, frozen=True):
    """One of some words; the first is the default."""

    name: str
    description: str
    words: tuple[str, ...]

    @property
    def schema(self) -> dict[str, Any]:
        return {"type": "string", "enum": list(self.words), "default": self.words[0]}

    def read(self, http: web.Request) -> str:
        """Raises `Invalid`."""
        text = _only(http, self.name)
        if text is None:
            return self.words[0]
        if text not in self.words:
            raise Invalid(self.name, f"must be one of {', '.join(self.words)}. Given: {text[:_MAX_SHOWN]}")
        return text


Parameter = Number | Word


def _only(http: web.Request, name: str) -> str | None:
    """The text given; None without any."""
    texts = http.query.getall(name, [])
    if len(texts) > 1:
        raise Invalid(name, f"must be given once. Given: {len(texts)} times")
    return texts[0] if texts else None
