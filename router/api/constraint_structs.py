"""How clients of TGI, OpenAI and vLLM say what an answer must look like."""

from typing import Annotated, Any

import msgspec
from msgspec import Meta

# A field that would change the text is refused if given with another value.
Unsupported = Annotated[
    Any, Meta(description="Not supported.", extra_json_schema={"enum": [None, False, "", [], {}]})
]
# A text that is refused in our own words.
Refused = Annotated[str, Meta(description="Not supported.", extra_json_schema={"maxLength": 0})]
# Left as it is written: how large it is must be known before it is read, and the order of its keys counts.
Schema = Annotated[
    msgspec.Raw,
    Meta(
        description="A JSON Schema, or a string that holds one.",
        extra_json_schema={"anyOf": [{"type": "object"}, {"type": "string"}, {"type": "null"}]},
    ),
]
Raw = Schema | msgspec.UnsetType  # msgspec takes null alone for `Schema | None`


class NamedSchema(msgspec.Struct, frozen=True):
    """OpenAI's. `strict` or not, answers follow the schema; `name` and `description` are for the client."""

    schema: Raw = msgspec.UNSET
    name: str | None = None
    description: str | None = None
    strict: bool | None = None


class Text(msgspec.Struct, frozen=True, tag="text", tag_field="type"):
    """Any text."""


class JsonObject(msgspec.Struct, frozen=True, tag="json_object", tag_field="type"):
    """A JSON object, of a schema if one is given."""

    value: Raw = msgspec.UNSET
    schema: Raw = msgspec.UNSET


class Json(msgspec.Struct, frozen=True, tag="json", tag_field="type"):
    """JSON of a schema, as TGI's clients say it."""

    value: Schema


class JsonSchema(msgspec.Struct, frozen=True, tag="json_schema", tag_field="type"):
    """JSON of a schema: OpenAI's `json_schema`, or TGI's `value`, which may be the schema itself."""

    json_schema: NamedSchema | None = None
    value: Raw = msgspec.UNSET


class Regex(msgspec.Struct, frozen=True, tag="regex", tag_field="type"):
    """What the whole text matches."""

    value: str


class Lark(msgspec.Struct, frozen=True, tag="grammar", tag_field="type"):
    """A grammar in Lark's notation, or in GBNF."""

    value: str


Format = Text | JsonObject | Json | JsonSchema | Regex | Lark


class StructuredOutputs(msgspec.Struct, frozen=True):
    """vLLM's: one of these."""

    json: Raw = msgspec.UNSET
    regex: str | None = None
    choice: list[str] | None = None
    grammar: str | None = None
    json_object: bool | None = None
    structural_tag: Refused | None = None
    whitespace_pattern: Refused | None = None
