"""Finds the end of a JSON value that comes in pieces."""


class JsonEnd:
    """Follows one object or array. What is inside need not be JSON: only quotes and brackets count."""

    def __init__(self) -> None:
        self._depth = 0
        self._is_in_string = False
        self._is_escaped = False

    def find(self, text: str) -> int | None:
        """Take the next piece; returns the length of its part of the value, None if the value goes on."""
        for at, character in enumerate(text):
            if self._is_in_string:
                self._take_in_string(character)
            elif character == '"':
                self._is_in_string = True
            elif character in "{[":
                self._depth += 1
            elif character in "}]":
                self._depth -= 1
                if self._depth <= 0:
                    return at + 1
        return None

    def _take_in_string(self, character: str) -> None:
        if self._is_escaped:
            self._is_escaped = False
        elif character == "\\":
            self._is_escaped = True
        elif character == '"':
            self._is_in_string = False
