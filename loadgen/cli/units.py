"""Parses quantities such as `500ms`, `2GiB`, `10%`, `chat=3,code=1`. Error messages are one sentence."""

import re

_DURATION = re.compile(r"(\d+(?:\.\d+)?)\s*(ms|s|m|min|h)?")
_BYTES = re.compile(r"(\d+(?:\.\d+)?)\s*(?:([KMGT])(i)?)?B?")
_SECONDS = {"ms": 1e-3, "s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0}


class BadQuantity(ValueError):
    """An unreadable quantity; the message says what was expected."""


def seconds(text: str) -> float:
    """`500ms`, `30s`, `2m`, `1h`; a bare number is seconds."""
    found = _DURATION.fullmatch(text.strip())
    if found is None:
        raise BadQuantity(f"{text!r} is not a time like 500ms, 30s, 2m or 1h")
    return float(found.group(1)) * _SECONDS[found.group(2) or "s"]


def number(text: str, what: str) -> float:
    """A positive number. `what` names it in the error."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 < value < float("inf"):
        raise BadQuantity(f"{text!r} is not a positive number ({what})")
    return value


def num_bytes(text: str) -> int:
    """`512MiB`, `2GiB`, `1.5GB`; a bare number is bytes."""
    found = _BYTES.fullmatch(text.strip())
    if found is None:
        raise BadQuantity(f"{text!r} is not a number of bytes like 512MiB or 2GiB")
    exponent = "KMGT".find(found.group(2) or " ") + 1
    unit: int = (1024 if found.group(3) else 1000) ** exponent
    return round(float(found.group(1)) * unit)


def share(text: str) -> float:
    """`10%` or `0.1`, from 0 to 1."""
    body = text.strip()
    try:
        value = float(body.removesuffix("%")) / (100 if body.endswith("%") else 1)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:
        raise BadQuantity(f"{text!r} is not a share like 0.1 or 10%")
    return value


def weights(text: str) -> dict[str, float]:
    """`chat`, `chat,code` or `chat=3,code=1`: names and how often each is drawn."""
    pairs = (part.strip().partition("=") for part in re.split(r"[,+]", text))
    return {name.strip(): number(weight, f"weight of {name}") if weight else 1.0 for name, _, weight in pairs}
