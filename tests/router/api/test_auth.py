"""Keys, operation without them, and web pages."""

import asyncio
import socket
from unittest.mock import Mock

import pytest
from aiohttp.test_utils import make_mocked_request

from router.api.auth import Auth, Keys, who_may
from router.api.errors import Refused
from router.api.headers import header_value
from router.settings.config import Config
from tests.router.http_fakes import Client, ask, serving

OPEN = ("/", "/ping", "/health", "/livez", "/readyz", "/metrics")
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
        for path in ("/", "/generate", "/generate_stream", "/invocations"):
            status, answer = await client.post(path, ask(path))
            assert (status, answer["error_type"]) == (401, "unauthorized")
        for path in ("/v1/completions", "/v1/chat/completions"):
            status, answer = await client.post(path, ask(path))
            assert (status, answer["error"]["code"]) == (401, "invalid_api_key")
        headers = {"Authorization": "Bearer secret"}
        assert (await client.post("/generate", ask("/generate"), headers=headers))[0] == 200
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


@pytest.mark.parametrize(
    ("site", "status"), [("cross-site", 403), ("same-site", 403), ("same-origin", 200), ("none", 200)]
)
async def test_a_command_from_another_sites_page_is_refused_also_without_its_origin(
    client: Client, site: str, status: int
) -> None:
    headers = {"Sec-Fetch-Site": site}
    async with client.session.post(client.url + "/ops/resume", json={}, headers=headers) as response:
        assert response.status == status
    assert await status_of(client, "/ops/state", **headers) == 200  # by a link, say; no page can read it


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


def status_for(keys: Keys, method: str, remote: str, **headers: str) -> int:
    """Status of a call to /ops."""
    headers = {"Host": "127.0.0.1:3000"} | {name.replace("_", "-"): text for name, text in headers.items()}
    transport = Mock()
    transport.get_extra_info = {"peername": (remote, 5000)}.get
    try:
        keys.check(make_mocked_request(method, "/ops/x", headers, transport=transport), Auth.ADMIN)
    except Refused as refused:
        return refused.status
    return 200


@pytest.mark.parametrize(
    ("remote", "more", "status"),
    [
        ("127.0.0.1", {}, 200),
        ("127.8.8.8", {}, 200),
        ("::1", {}, 200),
        ("::ffff:127.0.0.1", {}, 200),
        ("10.0.0.7", {}, 403),
        ("2001:db8::7", {}, 403),
        ("127.0.0.1", {"X_Forwarded_For": "10.0.0.7"}, 403),
        ("127.0.0.1", {"Forwarded": "for=10.0.0.7"}, 403),
        ("127.0.0.1", {"X_Real_IP": "10.0.0.7"}, 403),
        ("127.0.0.1", {"Via": "1.1 proxy"}, 403),
    ],
)
def test_without_an_admin_key_commands_are_this_machines_alone(
    remote: str, more: dict[str, str], status: int
) -> None:
    assert status_for(Keys(None, None), "POST", remote, **more) == status
    assert status_for(Keys(None, None), "GET", remote, **more) == 200
    key = {"Authorization": "Bearer secret"}
    assert status_for(Keys("secret", None), "POST", remote, **key, **more) == status
    assert status_for(Keys("secret", None), "GET", remote, **key, **more) == 200
    assert status_for(Keys("secret", None), "POST", remote, **more) == 401
    assert status_for(Keys("secret", "root"), "POST", remote, **key, **more) == 401
    assert status_for(Keys("secret", "root"), "POST", remote, Authorization="Bearer root", **more) == 200


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("localhost", 200),
        ("LOCALHOST:3000", 200),
        ("helios.localhost:3000", 200),
        ("localhost.:3000", 200),
        ("127.0.0.1:3000", 200),
        ("10.1.2.3", 200),
        ("[::1]:3000", 200),
        (f"{socket.gethostname()}:3000", 200),
        ("models.example:3000", 200),
        ("evil.example", 403),
        ("evil.example:3000", 403),
        ("localhost.evil.example", 403),
        ("127.0.0.1.evil.example", 403),
        ("[::1", 403),
        ("", 403),
    ],
)
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_a_page_that_gives_its_own_name_this_address_may_not_operate(
    method: str, host: str, status: int
) -> None:
    assert status_for(Keys(None, None, "Models.Example"), method, "127.0.0.1", Host=host) == status
    origin = {"Host": host, "Origin": f"http://{host}"}
    assert status_for(Keys(None, None, "Models.Example"), method, "127.0.0.1", **origin) == status
    keyed = {"Host": host, "Authorization": "Bearer root"}
    assert status_for(Keys(None, "root"), method, "10.0.0.7", **keyed) == 200


@pytest.mark.parametrize("origin", ["http://evil.example", "null", "http://[", "http://127.0.0.1:3001"])
def test_a_page_of_another_origin_may_not_operate_with_a_key_either(origin: str) -> None:
    more = {"Origin": origin, "Authorization": "Bearer root"}
    assert status_for(Keys(None, "root"), "GET", "127.0.0.1", **more) == 403
    assert status_for(Keys(None, "root"), "POST", "127.0.0.1", **more) == 403


async def test_generation_is_open_by_any_name() -> None:
    async with serving() as client:
        headers = {"Host": "models.example", "X-Forwarded-For": "10.0.0.7"}
        assert (await client.post("/generate", {"inputs": "Hi"}, headers=headers))[0] == 200
        assert (await client.post("/ops/drain", {}, headers=headers))[0] == 403
        assert (await client.post("/ops/drain", {}))[0] == 200


@pytest.mark.parametrize(
    ("settings", "generation", "looks", "commands"),
    [
        ({}, "everyone who reaches it", "everyone who reaches it", "this machine"),
        (
            {"api_key": "s"},
            "whoever has the API key",
            "whoever has the API key",
            "this machine with that key",
        ),
        (
            {"admin_key": "s"},
            "everyone who reaches it",
            "whoever has the admin key",
            "whoever has the admin key",
        ),
    ],
)
def test_what_is_open_to_whom_is_one_line(
    settings: dict[str, str], generation: str, looks: str, commands: str
) -> None:
    said = who_may(Config(**settings))
    assert said == (
        f"Open: generation to {generation}, a look at /ops to {looks}, commands to {commands}, "
        "health and metrics to everyone."
    )


@pytest.mark.parametrize(
    ("name", "header"),
    [
        ("modèle", "mod%C3%A8le"),
        ("模型", "%E6%A8%A1%E5%9E%8B"),
        ("50% off ~", "50% off ~"),
    ],
)
async def test_any_name_fits_into_a_header(name: str, header: str) -> None:
    async with serving(served_model_name=(name,)) as client:
        for path in ("/generate", "/v1/completions", "/nowhere"):
            async with client.session.post(client.url + path, json=ask(path)) as response:
                assert response.headers["x-helios-model"] == header
                if path == "/v1/completions":
                    assert (await response.json())["model"] == name


@pytest.mark.parametrize(("text", "value"), [("a\x7fb", "a%7Fb"), ("a\r\nb", "a%0D%0Ab"), ("", "")])
def test_what_no_header_may_hold_is_percent_encoded(text: str, value: str) -> None:
    assert header_value(text) == value


@pytest.mark.parametrize(
    ("sent", "kept"),
    [("mine", "mine"), ("né", "né"), (b"\xff\xfe".decode(errors="surrogateescape"), "%FF%FE")],
)
async def test_a_clients_own_id_comes_back_and_is_listed(client: Client, sent: str, kept: str) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", int(client.url.rpartition(":")[2]))
    body = b'{"inputs": "Hi"}'
    head = f"POST /generate HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {len(body)}\r\n"
    head += f"x-request-id: {sent}"
    writer.write(head.encode(errors="surrogateescape") + b"\r\n\r\n" + body)
    answer = await reader.read()
    writer.close()
    assert answer.startswith(b"HTTP/1.1 200")
    assert f"x-request-id: {kept}\r\n".encode() in answer
    status, listed = await client.get("/ops/requests")
    assert (status, listed["requests"][0]["label"]) == (200, kept)


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("POST", "/generate", 400),
        ("POST", "/v1/chat/completions", 400),
        ("GET", "/v1/models/none", 404),
        ("GET", "/nowhere", 404),
        ("GET", "/health", 200),
    ],
)
async def test_a_clients_own_id_comes_back_with_every_answer(
    client: Client, method: str, path: str, status: int
) -> None:
    mine = {"x-request-id": "mine"}
    async with client.session.request(method, client.url + path, headers=mine) as response:
        assert (response.status, response.headers["x-request-id"]) == (status, "mine")
    async with client.session.request(method, client.url + path) as response:
        assert "x-request-id" not in response.headers
