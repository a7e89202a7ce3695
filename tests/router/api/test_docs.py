"""The OpenAPI document and its page."""

import json
import re
from typing import Any

import pytest

from router.api.tgi_structs import Parameters
from tests.router.http_fakes import Client, serving


@pytest.fixture
async def document(client: Client) -> Any:
    status, document = await client.get("/openapi.json")
    assert status == 200
    return document


def references(node: Any) -> set[str]:
    if isinstance(node, dict):
        own = {node["$ref"]} if "$ref" in node else set()
        return own.union(*map(references, node.values()))
    return set().union(*map(references, node)) if isinstance(node, list) else set()


async def test_every_route_of_the_contract_is_documented(document: Any) -> None:
    assert document["openapi"].startswith("3.1")
    wanted = """
        / /generate /generate_stream /v1/chat/completions /v1/completions /v1/responses /v1/models
        /v1/models/{id} /tokenize /detokenize /chat_tokenize /invocations /ping /info /health
        /livez /readyz /metrics /openapi.json /docs /ops /ops/state /ops/overview /ops/requests
            /ops/requests/{id}
        /ops/drain /ops/resume /ops/abort /ops/cache/clear /ops/swap /ops/pin /ops/unpin /ops/rollback
        /ops/threshold /ops/decisions /ops/decisions/{id} /ops/windows
    """
    assert set(document["paths"]) == set(wanted.split())


async def test_every_reference_leads_somewhere(document: Any) -> None:
    for reference in references(document):
        assert reference.removeprefix("#/components/schemas/") in document["components"]["schemas"]


async def test_schemas_are_those_of_the_structs(document: Any) -> None:
    schema = document["components"]["schemas"]["Parameters"]
    assert set(schema["properties"]) == set(Parameters.__struct_fields__)
    assert {"type": "number", "exclusiveMinimum": 0, "maximum": 1} in schema["properties"]["top_p"]["anyOf"]


async def test_operation_ids_are_unique(document: Any) -> None:
    ids = [operation["operationId"] for path in document["paths"].values() for operation in path.values()]
    assert len(ids) == len(set(ids))


async def test_generations_say_how_they_fail(document: Any) -> None:
    responses = document["paths"]["/generate"]["post"]["responses"]
    assert set(responses) == {"200", "400", "413", "415", "422", "424", "429", "500"}
    assert "422" not in document["paths"]["/v1/completions"]["post"]["responses"]
    assert "text/event-stream" in document["paths"]["/"]["post"]["responses"]["200"]["content"]


async def test_keys_are_declared_where_they_are_asked_for(document: Any) -> None:
    assert document["components"]["securitySchemes"] == {}
    assert document["paths"]["/generate"]["post"]["security"] == []
    async with serving(api_key="s3cret") as client:
        headers = {"authorization": "Bearer s3cret"}
        async with client.session.get(client.url + "/openapi.json", headers=headers) as response:
            openapi = await response.json()
    assert set(openapi["components"]["securitySchemes"]) == {"key", "admin"}
    assert openapi["paths"]["/generate"]["post"]["security"] == [{"key": []}]
    assert openapi["paths"]["/health"]["get"]["security"] == []
    assert "401" in openapi["paths"]["/ops/state"]["get"]["responses"]


async def test_the_page_holds_the_document_and_loads_nothing(client: Client, document: Any) -> None:
    async with client.session.get(client.url + "/docs") as response:
        assert response.content_type == "text/html"
        page = await response.text()
    embedded = re.search(r'<script type="application/json" id="document">(.*?)</script>', page, re.DOTALL)
    assert embedded is not None
    assert json.loads(embedded[1]) == document
    assert not re.search(r"""(src|href)=["'](https?:)?//""", page)
