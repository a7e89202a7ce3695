"""Reads metric and label names out of PromQL, as far as rules and dashboards of ours need."""

import re
from collections.abc import Iterator

FUNCTIONS = {
    "sum", "max", "min", "avg", "count", "rate", "increase", "delta", "deriv", "histogram_quantile",
    "min_over_time", "max_over_time", "label_values",
}  # fmt: skip
_WORDS = {"and", "or", "unless"}
_LABEL_LISTS = {"by", "without", "on", "ignoring", "group_left", "group_right"}
_TOKEN = re.compile(
    r"""\s+|(?P<text>"[^"]*")|(?P<range>\[[^\]]*\])|(?P<name>[A-Za-z_:][A-Za-z0-9_:]*)|"""
    r"""(?P<number>[0-9.]+(e-?[0-9]+)?)|(?P<sign>=~|!~|!=|==|<=|>=|[-+*/%<>=(){},])"""
)


def names(expression: str) -> Iterator[tuple[str, set[str]]]:
    """Each metric with its labels in braces, and under the name "" those of `by` and its like.

    Raises `ValueError` for what is no PromQL that it knows.
    """
    tokens = list(_tokens(expression))
    depth = 0
    at = 0
    while at < len(tokens):
        kind, text = tokens[at]
        at += 1
        depth += {"(": 1, ")": -1}.get(text, 0)
        if kind != "name" or text in _WORDS:
            continue
        following = tokens[at][1] if at < len(tokens) else ""
        if text in _LABEL_LISTS:
            end = tokens.index(("sign", ")"), at)
            yield "", {name for kind, name in tokens[at:end] if kind == "name"}
            at = end + 1
        elif following in ("(", "by", "without"):
            if text not in FUNCTIONS:
                raise ValueError(f"{text} is no function: {expression}")
        elif following == "{":
            end = tokens.index(("sign", "}"), at)
            yield text, {name for kind, name in tokens[at:end] if kind == "name"}
            at = end + 1
        else:
            yield text, set()
    if depth:
        raise ValueError(f"A bracket is missing: {expression}")


def _tokens(expression: str) -> Iterator[tuple[str, str]]:
    at = 0
    while at < len(expression):
        found = _TOKEN.match(expression, at)
        if found is None:
            raise ValueError(f"{expression[at:]!r} is no PromQL")
        at = found.end()
        if found.lastgroup is not None:
            kind = next(name for name, text in found.groupdict().items() if text is not None)
            yield kind, found[kind]
