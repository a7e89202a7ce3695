"""The tools of a request: what may be called, and whether it must be."""

from typing import Any

import msgspec

MAX_CALLS = 16  # in one answer: a small model that repeats itself comes to an end


class Function(msgspec.Struct, frozen=True):
    """A function that a client offers."""

    name: str
    description: str | None
    parameters: dict[str, Any]  # a JSON Schema of an object
    arguments: str = ""  # the same as llguidance reads it, once it is checked

    @property
    def described(self) -> dict[str, Any]:
        """As chat templates expect it, in OpenAI's shape."""
        named = {"name": self.name, "description": self.description or ""}
        return {"type": "function", "function": named | {"parameters": self.parameters}}


class Tools(msgspec.Struct, frozen=True, kw_only=True):
    """All functions, and which of them an answer may call."""

    functions: list[Function]
    names: list[str]  # of those that may be called
    must_call: bool = False
    is_named: bool = False  # one function must be called
    max_calls: int = MAX_CALLS

    @property
    def described(self) -> list[dict[str, Any]]:
        return [function.described for function in self.functions]

    @property
    def callable(self) -> list[Function]:
        return [function for function in self.functions if function.name in self.names]
