"""A running server is safe as it is started: who may operate it, from where, and that it says so."""

import http.client
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.running import Server

COMMANDS = {
    "/ops/swap", "/ops/pin", "/ops/unpin", "/ops/rollback", "/ops/threshold", "/ops/drain", "/ops/resume",
    "/ops/abort", "/ops/cache/clear",
}  # fmt: skip


def addresses() -> list[str]:
    """Addresses of this machine by which other machines reach it."""
    known = [one.address for interface in psutil.net_if_addrs().values() for one in interface]
    return [address for address in known if address.count(".") == 3 and not address.startswith("127.")]


def ask(
    server: Server, method: str, path: str, address: str = "127.0.0.1", **headers: str
) -> tuple[int, Any]:
    port = int(server.url.rpartition(":")[2])
    connection = http.client.HTTPConnection(address, port, timeout=20)
    named = {name.replace("_", "-"): text for name, text in headers.items()}
    connection.request(method, path, b"{}", {"content-type": "application/json"} | named)
    answer = connection.getresponse()
    body = answer.read()
    connection.close()
    return answer.status, json.loads(body) if body.startswith(b"{") else body


def commands_of(server: Server, **headers: str) -> set[str]:
    """Every command that the server documents."""
    _, document = ask(server, "GET", "/openapi.json", **headers)
    return {
        path for path, methods in document["paths"].items() if path.startswith("/ops") and "post" in methods
    }


@pytest.fixture(scope="module")
def start(serve: Callable[..., Server], tiny_model: Callable[[str], Path]) -> Callable[..., Server]:
    usual = {"model_id": tiny_model("llama"), "device": "sim", "hostname": "0.0.0.0"}
    return lambda **settings: serve(**usual, redis_url="redis://127.0.0.1:1", **settings)


FROM_AFAR = [
    pytest.param({"X_Forwarded_For": "10.0.0.7"}, id="through a proxy on this machine"),
    pytest.param({"Origin": "http://evil.example"}, id="a page of another origin"),
    pytest.param({"Origin": "null"}, id="a page without an origin"),
    pytest.param({"Host": "evil.example"}, id="a page whose name was given this address"),
]


def test_as_it_is_started_only_this_machine_gives_commands(start: Callable[..., Server]) -> None:
    with start() as server:
        commands = commands_of(server)
        assert commands >= COMMANDS
        for path in commands:
            for case in FROM_AFAR:
                assert ask(server, "POST", path, **case.values[0])[0] == 403, (path, case.id)
            for address in addresses():
                assert ask(server, "POST", path, address)[0] == 403, (path, address)
            assert ask(server, "POST", path)[0] not in (401, 403), path
        for path in ("/ops/state", "/ops/windows", "/ops/decisions", "/ops/requests"):
            assert ask(server, "GET", path)[0] == 200
            for case in FROM_AFAR[1:]:
                assert ask(server, "GET", path, **case.values[0])[0] == 403, (path, case.id)


def test_a_client_with_the_api_key_is_no_operator(start: Callable[..., Server]) -> None:
    key = {"Authorization": "Bearer clients"}
    with start(api_key="clients") as server:
        for path in commands_of(server, **key):
            assert ask(server, "POST", path)[0] == 401
            for case in FROM_AFAR[:3]:
                assert ask(server, "POST", path, **key, **case.values[0])[0] == 403, (path, case.id)
            for address in addresses():
                assert ask(server, "POST", path, address, **key)[0] == 403, (path, address)


def test_with_an_admin_key_only_who_has_it_operates(start: Callable[..., Server]) -> None:
    client, operator = {"Authorization": "Bearer clients"}, {"Authorization": "Bearer operators"}
    with start(api_key="clients", admin_key="operators") as server:
        for path in commands_of(server, **client):
            for headers in ({}, client):
                assert ask(server, "POST", path, **headers)[0] == 401, path
            for address in ("127.0.0.1", *addresses()):
                assert ask(server, "POST", path, address, **operator)[0] not in (401, 403), path
            assert ask(server, "POST", path, **operator, Origin="http://evil.example")[0] == 403


def test_a_start_says_what_is_open_to_whom(start: Callable[..., Server]) -> None:
    with start(api_key="clients") as server:
        assert "commands to this machine with that key" in server.said
        assert server.said.count("Open: ") == 1
