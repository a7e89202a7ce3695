"""Info, health, readiness and metrics."""

import tomllib
from pathlib import Path

import pytest

from router.api.status import VERSION
from tests.router.http_fakes import Client, serving


async def test_info_gives_the_limits_of_server_and_model() -> None:
    async with serving(max_input_tokens=100, max_best_of=3) as client:
        status, info = await client.get("/info")
        client.dispatcher.exit_threshold = 0.5  # an operator's, for all requests that give none
        _, info_by_threshold = await client.get("/info")
    assert status == 200
    assert info["model_id"] == client.config.model_name
    assert (info["max_input_tokens"], info["max_total_tokens"], info["max_best_of"]) == (100, 512, 3)
    assert (info["depth"], info["num_layers"], info["supports_exact"]) == (4, 4, True)
    assert (info["supports_chat"], info["exit_thresholds"]) == (True, {"3": 0.9})
    assert info_by_threshold["exit_thresholds"] == {"3": 0.5}
    assert info["weight_bytes"] > 0
    assert info["model_device_type"] == "sim"


async def test_a_loading_server_is_live_and_not_ready() -> None:
    async with serving() as client:
        client.dispatcher.limits = None
        for path, status in (
            ("/livez", 200),
            ("/readyz", 503),
            ("/health", 503),
            ("/", 503),
            ("/ping", 503),
            ("/info", 200),
        ):
            async with client.session.get(client.url + path) as response:
                assert response.status == status, path
                if status == 503:
                    assert (await response.json())["error_type"] == "healthcheck"


async def test_calls_are_counted_by_how_they_end(client: Client) -> None:
    await client.post("/generate", {"inputs": "Hi"})
    await client.events("/generate_stream", {"inputs": "Hi"})
    await client.post("/generate", {"inputs": ""})
    client.dispatcher.fails_after = 1
    await client.events("/generate_stream", {"inputs": "Hi"})
    await client.post("/tokenize", {"inputs": "Hi"})
    async with client.session.get(client.url + "/metrics") as response:
        assert response.content_type == "text/plain"
        lines = (await response.text()).splitlines()
    assert "# TYPE tgi_request_count counter" in lines
    assert "tgi_request_count 4.0" in lines
    assert "tgi_request_success 2.0" in lines
    assert 'tgi_request_failure{err="validation"} 1.0' in lines
    assert 'tgi_request_failure{err="generation"} 1.0' in lines
    assert "tgi_request_validation_duration_count 3.0" in lines
    assert "tgi_queue_size 0.0" in lines
    assert "tgi_batch_current_max_tokens 0.0" in lines  # nothing runs


@pytest.mark.parametrize("path", ["/", "/ping", "/health", "/metrics", "/info", "/v1/models"])
async def test_head_is_answered_where_get_is(client: Client, path: str) -> None:
    async with client.session.head(client.url + path) as response:
        assert response.status == 200


def test_the_version_is_the_packages() -> None:
    project = tomllib.loads((Path(__file__).parents[3] / "pyproject.toml").read_text())["project"]
    assert project["version"] == VERSION
