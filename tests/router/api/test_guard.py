"""Keys and web pages."""

import pytest

from tests.router.http_fakes import Client, serving

OPEN = ("/health", "/livez", "/readyz", "/metrics")
KEYED = ("/info", "/v1/models", "/docs", "/openapi.json")


async def status_of(client: Client, path: str, key: str | None = None, **headers: str) -> int:
    if key is not None:
        headers["Authorization"] = key
    async with client.session.get(client.url + path, headers=headers) as response:
        if response.status == 401:
            assert response.headers["WWW-Authenticate"] == "Bearer"
            assert (await response.json())["error_type"] == "unauthorized"
        return response.status


@pytest.mark.parametrize("path", OPEN)
async def test_health_and_metrics_ask_for_no_key(path: str) -> None:
    async with serving(api_key="secret", admin_key="root") as client:
        assert await status_of(client, path) == 200


@pytest.mark.parametrize("path", KEYED)
@pytest.mark.parametrize(
    ("key", "status"),
    [
        (None, 401),
        ("", 401),
        ("secret", 401),
        ("Bearer wrong", 401),
        ("Bearer sécret", 401),
        ("Basic secret", 401),
        ("Bearer root", 401),
        ("Bearer secret", 200),
        ("bearer secret", 200),
    ],
)
async def test_every_other_route_asks_for_the_api_key(path: str, key: str | None, status: int) -> None:
    async with serving(api_key="secret", admin_key="root") as client:
        assert await status_of(client, path, key) == status


async def test_generations_ask_for_the_api_key_in_their_dialect() -> None:
    async with serving(api_key="secret") as client:
        body = {"inputs": "Hi", "prompt": "Hi", "messages": [{"role": "user", "content": "Hi"}]}
        for path in ("/", "/generate", "/generate_stream", "/invocations"):
            status, answer = await client.post(path, body)
            assert (status, answer["error_type"]) == (401, "unauthorized")
        for path in ("/v1/completions", "/v1/chat/completions"):
            status, answer = await client.post(path, body)
            assert (status, answer["error"]["code"]) == (401, "invalid_api_key")
        headers = {"Authorization": "Bearer secret"}
        assert (await client.post("/generate", body, headers=headers))[0] == 200
        assert len(client.dispatcher.submitted) == 1


@pytest.mark.parametrize(
    ("settings", "key", "status"),
    [
        ({}, None, 200),
        ({"api_key": "secret"}, None, 401),
        ({"api_key": "secret"}, "Bearer secret", 200),
        ({"admin_key": "root"}, None, 401),
        ({"admin_key": "root"}, "Bearer root", 200),
        ({"admin_key": "root", "api_key": "secret"}, "Bearer secret", 401),
        ({"admin_key": "root", "api_key": "secret"}, "Bearer root", 200),
    ],
)
async def test_operation_asks_for_the_admin_key(
    settings: dict[str, str], key: str | None, status: int
) -> None:
    async with serving(**settings) as client:
        assert await status_of(client, "/ops/state", key) == status


async def test_an_admin_key_alone_leaves_generation_open() -> None:
    async with serving(admin_key="root") as client:
        assert (await client.post("/generate", {"inputs": "Hi"}))[0] == 200


async def test_operation_is_closed_to_pages_of_other_sites(client: Client) -> None:
    assert await status_of(client, "/ops/state", Origin="http://evil.example") == 403
    assert await status_of(client, "/ops/state", Origin=client.url) == 200


async def test_any_page_may_call_unless_origins_are_given(client: Client) -> None:
    headers = {"Origin": "http://a.example"}
    async with client.session.post(
        client.url + "/generate_stream", json={"inputs": "Hi"}, headers=headers
    ) as response:
        assert response.headers["Access-Control-Allow-Origin"] == "*"


async def test_only_pages_of_given_origins_may_call() -> None:
    async with serving(cors_allow_origin=("http://a.example",)) as client:
        for origin, allowed in (("http://a.example", "http://a.example"), ("http://b.example", None)):
            async with client.session.get(client.url + "/info", headers={"Origin": origin}) as response:
                assert response.headers.get("Access-Control-Allow-Origin") == allowed


async def test_a_browser_that_asks_first_is_told_without_a_key() -> None:
    async with serving(api_key="secret") as client:
        headers = {"Origin": "http://a.example", "Access-Control-Request-Method": "POST"}
        async with client.session.options(client.url + "/generate", headers=headers) as response:
            assert response.status == 204
            assert "POST" in response.headers["Access-Control-Allow-Methods"]
            assert "Authorization" in response.headers["Access-Control-Allow-Headers"]
            assert response.headers["Access-Control-Allow-Origin"] == "*"


async def test_a_page_may_send_the_headers_that_its_client_has(client: Client) -> None:
    wanted = "authorization,content-type,openai-beta,x-stainless-lang,x-stainless-retry-count"
    headers = {
        "Origin": "http://a.example",
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": f"{wanted},\u00e9 x,{'x' * 100}",
    }
    async with client.session.options(client.url + "/v1/chat/completions", headers=headers) as response:
        assert response.headers["Access-Control-Allow-Headers"] == wanted.replace(",", ", ")
