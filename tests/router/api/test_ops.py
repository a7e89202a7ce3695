"""Inspection and operation."""

import asyncio

import pytest

from tests.router.http_fakes import Client

SHARD_FIELDS = {
    "id",
    "state",
    "model",
    "version",
    "depth",
    "num_layers",
    "exit_mode",
    "running",
    "waiting",
    "num_free_blocks",
    "num_blocks",
    "heartbeat_age_ms",
}


async def test_state_shows_deployment_shards_and_queue(client: Client) -> None:
    status, state = await client.get("/ops/state")
    assert status == 200
    assert state["deployment"] == "helios"
    assert state["redis"] == "lost"
    assert state["pinned"] is None
    assert (state["reassessment"]["state"], state["reassessment"]["num_requests"]) == ("off", 0)
    [shard] = state["shards"]
    assert set(shard) >= SHARD_FIELDS
    assert shard["state"] == "serving"


async def test_a_request_has_a_time_line(client: Client) -> None:
    await client.post("/generate", {"inputs": "Hi"}, headers={"x-request-id": "mine"})
    _, listed = await client.get("/ops/requests")
    [row] = listed["requests"]
    assert row["label"] == "mine"
    assert (row["status"], row["outcome"]) == ("finished", "eos_token")
    assert (row["num_prompt_tokens"], row["num_generated_tokens"]) == (2, 7)
    status, report = await client.get(f"/ops/requests/{row['id']}")
    assert status == 200
    assert [moment["what"] for moment in report["timeline"]] == [
        "queued",
        "started",
        "first_token",
        "finished: eos_token",
    ]
    times = [moment["at_ms"] for moment in report["timeline"]]
    assert times == sorted(times)
    assert times[0] == 0
    assert report["mean_exit_layer"] == 3
    assert (report["exit_layers"], report["exit_layers_from"]) == ([3] * 7, 0)
    started = report["timeline"][1]
    assert (started["shard"], started["depth"], started["num_generated_tokens"]) == (0, 4, 0)
    assert started["model"] == row["model"]
    assert report["timeline"][-1]["num_generated_tokens"] == 7


async def test_depth_by_token_is_bounded(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("router.api.ops.MAX_EXIT_LAYERS", 3)
    await client.post("/generate", {"inputs": "Hi"})
    _, report = await client.get("/ops/requests/1")
    assert (report["exit_layers"], report["exit_layers_from"]) == ([3] * 3, 4)


async def test_an_unknown_request_is_404(client: Client) -> None:
    for id in ("99", "x", "-1", "9" * 200, "9" * 4400):
        status, answer = await client.get(f"/ops/requests/{id}")
        assert (status, answer["error_type"]) == (404, "request_not_found")
    assert (await client.post("/ops/abort", {"request_id": 99}))[0] == 404


async def test_an_operator_may_end_a_request(client: Client) -> None:
    client.dispatcher.held.clear()
    call = asyncio.create_task(client.post("/generate", {"inputs": "Hi"}))
    await client.dispatcher.until(lambda: bool(client.dispatcher.submitted))
    assert await client.post("/ops/abort", {"request_id": 1}) == (200, {"aborted": True})
    status, answer = await call
    assert status == 424
    assert "aborted by an operator" in answer["error"]
    assert await client.post("/ops/abort", {"request_id": 1}) == (200, {"aborted": False})
    _, report = await client.get("/ops/requests/1")
    assert report["error"] == "The request was aborted by an operator."


async def test_drain_and_resume_change_readiness_and_not_health(client: Client) -> None:
    status, state = await client.post("/ops/drain", {})
    assert (status, state["is_draining"]) == (200, True)
    assert (await client.get("/readyz"))[0] == 503
    async with client.session.get(client.url + "/health") as response:
        assert response.status == 200
    async with client.session.post(client.url + "/ops/resume") as response:
        assert response.status == 200
    async with client.session.get(client.url + "/readyz") as response:
        assert response.status == 200


async def test_an_unknown_shard_is_422_and_the_known_ones_are_named(client: Client) -> None:
    status, answer = await client.post("/ops/drain", {"shard": 7})
    assert status == 422
    assert "`shard` must be one of 0. Given: 7" in answer["error"]


async def test_the_overview_of_a_router_has_its_state_and_none_of_its_clients_words(client: Client) -> None:
    await client.post("/generate", {"inputs": "My secret"}, headers={"x-request-id": "label of mine"})
    await client.post("/generate", {"inputs": 3})
    async with client.session.get(client.url + "/ops/overview") as response:
        text = await response.text()
        overview = await response.json()
    _, state = await client.get("/ops/state")
    [router], [shard] = overview["routers"], overview["shards"]
    assert overview["redis"] == "lost"
    assert {
        name: shard["shard"].get(name) for name in ("state", "model", "version", "depth", "num_blocks")
    } == {name: state["shards"][0][name] for name in ("state", "model", "version", "depth", "num_blocks")}
    assert router["snapshot"]["refusals"] == state["refusals"] == {"validation": 1}
    assert router["snapshot"]["floor"] == state["floor"] == 0.95
    [request] = router["snapshot"]["requests"]
    assert (request["status"], request["num_generated_tokens"]) == ("finished", 7)
    assert request["timeline"][0]["what"] == "queued"
    assert not any(words in text for words in ("secret", "label of mine", client.dispatcher.says))
