"""The OpenAPI 3.1 document, made from the routes and the structs of their bodies."""

import re
from collections.abc import Iterable, Iterator
from typing import Any

import msgspec

from router.api.auth import Auth
from router.api.errors import OpenAIError, TgiError, is_openai
from router.api.fields import DIALECTS, REFUSED, TOOLS, Dialect
from router.api.route import Route

Json = dict[str, Any]

_FAILURES = {
    "400": "Not JSON",
    "401": "No or a wrong key",
    "403": "Not from there: see --admin-key",
    "404": "There is none of that name",
    "409": "Not now: something else is being changed",
    "413": "Too large",
    "415": "Another media type than JSON",
    "422": "A field is missing, of the wrong type or out of bounds",
    "424": "The generation failed",
    "429": "Too much to do already; see Retry-After",
    "500": "A fault of the server",
    "503": "Not now",
}


def document(routes: list[Route], version: str, keys: frozenset[Auth]) -> Json:
    """The OpenAPI 3.1 document of `routes`; `keys` are the kinds of keys that the server asks for."""
    types = _types(routes)
    references, components = msgspec.json.schema_components(types, ref_template="#/components/schemas/{name}")
    schemas = dict(zip(map(repr, types), references, strict=True))
    for dialect in DIALECTS:
        _close(components, dialect)
    paths: dict[str, Json] = {}
    for route in routes:
        paths.setdefault(route.path, {})[route.method.lower()] = _operation(route, schemas, keys)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Helios",
            "version": version,
            "description": "Text generation with early-exit language models, in TGI's and OpenAI's dialects.",
        },
        "paths": paths,
        "components": {
            "schemas": components,
            "securitySchemes": {auth.name.lower(): _BEARER for auth in sorted(keys, key=str)},
        },
    }


def _close(components: dict[str, Json], dialect: Dialect) -> None:
    """Add the refused fields to a dialect's bodies, so that every body that fits the schema is accepted."""
    own = components[(dialect.parameters or dialect.body).__name__]
    own["patternProperties"] = _refusals(REFUSED.keys() - own["properties"].keys())
    if dialect.parameters is None:
        return
    misplaced = own["properties"].keys()
    for body in dialect.bodies:
        outer = components[body.__name__]
        refusals = _refusals(REFUSED.keys() - misplaced - outer["properties"].keys())
        outer["patternProperties"] = refusals | {_pattern(misplaced): {"type": "null"}}


def _refusals(names: Iterable[str]) -> Json:
    """Schema patterns of refused fields, one for each set of neutral values."""
    groups: dict[bytes, list[str]] = {}
    for name in set(names) - set(TOOLS):
        groups.setdefault(msgspec.json.encode(REFUSED[name].accepted), []).append(name)
    return {_pattern(group): {"enum": msgspec.json.decode(values)} for values, group in groups.items()}


def _pattern(names: Iterable[str]) -> str:
    return f"^({'|'.join(sorted(names))})$"


_BEARER = {"type": "http", "scheme": "bearer"}


def _types(routes: Iterable[Route]) -> list[Any]:
    """All body types, each once."""
    bodies = [body for route in routes for body in (route.takes, route.gives, route.streams)]
    types = [kind for body in bodies for kind in _alternatives(body)]
    return list({repr(kind): kind for kind in [*types, TgiError, OpenAIError]}.values())


def _alternatives(body: Any) -> tuple[Any, ...]:
    if body is None:
        return ()
    return body if isinstance(body, tuple) else (body,)


def _schema(body: Any, schemas: dict[str, Json]) -> Json:
    found = [schemas[repr(kind)] for kind in _alternatives(body)]
    return found[0] if len(found) == 1 else {"anyOf": found}


def _operation(route: Route, schemas: dict[str, Json], keys: frozenset[Auth]) -> Json:
    operation: Json = {
        "tags": [route.group],
        "summary": route.summary,
        "operationId": re.sub(r"\W+", "_", route.operation).strip("_").lower(),
        "responses": {str(route.status): _success(route, schemas)} | _failures(route, schemas, keys),
        "security": [{route.auth.name.lower(): []}] if route.auth in keys else [],
    }
    if route.takes is not None:
        body = _schema(route.takes, schemas)
        required = not route.is_body_optional
        operation["requestBody"] = {"required": required, "content": {"application/json": {"schema": body}}}
    parameters = _parameters(route)
    if parameters:
        operation["parameters"] = parameters
    return operation


def _parameters(route: Route) -> list[Json]:
    text = {"in": "path", "required": True, "schema": {"type": "string"}}
    in_path = [{"name": name} | text for name in re.findall(r"{(\w+)}", route.path)]
    return in_path + [
        {"name": one.name, "in": "query", "description": one.description, "schema": one.schema}
        for one in route.query
    ]


def _success(route: Route, schemas: dict[str, Json]) -> Json:
    content = {}
    if route.gives is not None:
        content[route.media_type] = {"schema": _schema(route.gives, schemas)}
    if route.streams is not None:
        content["text/event-stream"] = {"schema": _event(_schema(route.streams, schemas))}
    return {"description": "OK"} | ({"content": content} if content else {})


def _event(schema: Json) -> Json:
    """A server-sent event whose data is JSON of this schema."""
    data = {"type": "string", "contentMediaType": "application/json", "contentSchema": schema}
    return {"type": "object", "properties": {"data": data}, "required": ["data"]}


def _failures(route: Route, schemas: dict[str, Json], keys: frozenset[Auth]) -> Json:
    error = schemas[repr(OpenAIError if is_openai(route.path) else TgiError)]
    content = {"application/json": {"schema": error}}
    statuses = sorted(_statuses(route, keys))
    responses = {status: {"description": _FAILURES[status], "content": content} for status in statuses}
    if is_openai(route.path) and "400" in responses:
        responses["400"] = {"description": f"{_FAILURES['400']}; or: {_FAILURES['422']}", "content": content}
    return responses


def _statuses(route: Route, keys: frozenset[Auth]) -> Iterator[str]:
    """The error statuses that a call may end with."""
    if route.auth in keys:
        yield "401"
    if route.auth is Auth.ADMIN:
        yield "403"
    if "{" in route.path or route.auth is Auth.ADMIN or any(map(_names_a_model, _alternatives(route.takes))):
        yield "404"
    if route.method == "POST":
        yield from ("400", "413", "415", "500")
    if route.query or (route.method == "POST" and not is_openai(route.path)):
        yield "422"
    if route.method == "POST" and route.auth is Auth.ADMIN:
        yield "409"
    if route.generates:
        yield from ("424", "429")
    elif route.group == "Text":
        yield "429"
    if route.may_be_unready:
        yield "503"


def _names_a_model(body: Any) -> bool:
    return "model" in getattr(body, "__struct_fields__", ())
