"""Decodes request bodies into structs; an error names the field and what it must be."""

import re
from typing import TypeVar

import msgspec
from aiohttp import hdrs, web

from router.api.errors import Refused

T = TypeVar("T")

_AT_PATH = re.compile(r"(?P<problem>.*) - at (?P<key>`key` in )?`\$\.?(?P<path>.*?)`$", re.DOTALL)
_MISSING = re.compile(r"Object missing required field `(?P<field>[^`]*)`(?: - at `\$\.?(?P<path>[^`]*)`)?$")


async def read_body(http: web.Request) -> bytes:
    """The body of a POST. Raises `Refused`: 415 unless it is plain JSON, 413 over the payload limit.

    A body refused for its headers is not read, and compressed bodies are not unpacked: refusing is cheaper.
    """
    packed = http.headers.get(hdrs.CONTENT_ENCODING, "identity").strip().lower()
    if packed not in ("", "identity"):
        raise Refused("The body must be sent as it is, without a content encoding.", 415, "content_encoding")
    if http.body_exists and "Content-Type" in http.headers and not _is_json(http.content_type):
        raise Refused(
            f"The content type must be application/json, not {http.content_type}.", 415, "media_type"
        )
    limit = http.client_max_size
    if http.content_length is not None and http.content_length > limit:
        raise _too_large(limit)
    try:
        return await http.read()
    except web.HTTPRequestEntityTooLarge:
        raise _too_large(limit) from None
    except web.RequestPayloadError as error:
        raise Refused(f"The body cannot be read: {_one_line(error)}.", 400, "malformed") from None


def decode(body: bytes, kind: type[T]) -> T:
    """Raises `Refused`: 400 for what is not JSON, 422 for JSON of another shape."""
    if not body.strip():
        raise Refused("The body is empty; it must be a JSON object.", 400, "malformed")
    try:
        body.decode()  # msgspec skips unknown fields without checking their UTF-8
        return msgspec.json.decode(body, type=kind)
    except msgspec.ValidationError as error:
        raise _misfit(str(error)) from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise Refused(f"The body is not valid JSON: {error}.", 400, "malformed") from None
    except RecursionError:
        raise Refused("The body is nested too deeply.", 400, "malformed") from None


def _is_json(content_type: str) -> bool:
    return content_type == "application/json" or content_type.endswith("+json")


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())


def _too_large(limit: int) -> Refused:
    return Refused(f"The body must be at most {limit} bytes.", 413, "payload_too_large")


def _misfit(message: str) -> Refused:
    """msgspec's sentence, turned so that the field comes first."""
    if missing := _MISSING.fullmatch(message):
        path = ".".join(filter(None, (missing["path"], missing["field"])))
        return Refused(f"`{path}` is missing", 422, "validation", path)
    if at := _AT_PATH.fullmatch(message):
        problem = at["problem"][:1].lower() + at["problem"][1:]
        owner = "a key: " if at["key"] else ""
        return Refused(f"`{at['path']}`: {owner}{problem}", 422, "validation", at["path"])
    return Refused(f"The body: {message[:1].lower()}{message[1:]}", 422, "validation")
