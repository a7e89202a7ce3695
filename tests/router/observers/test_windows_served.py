"""/ops/windows of running servers and a real Redis: what went in comes out, whoever is asked."""

import json
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from shard.sim.sim_runner import CostModel
from telemetry.embedded import find_server
from tests.running import Server
from tests.telemetry.redis_server import RedisServer


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[RedisServer]:
    binary = find_server()
    assert binary is not None
    with RedisServer(binary, tmp_path) as server:
        yield server


@pytest.fixture
def start(
    serve: Callable[..., Server], tiny_model: Callable[[str], Path], redis: RedisServer, tmp_path: Path
) -> Callable[[], Server]:
    costs = tmp_path / "costs.json"
    costs.write_bytes(msgspec.json.encode(CostModel(step_ms=2.0, token_ms=0.0, sequence_ms=0.0)))
    settings = {"model_id": tiny_model("llama"), "served_model_name": "poet", "device": "sim", "watts": 50}
    return lambda: serve(**settings, cost_model=costs, redis_url=redis.url, deployment="poems")


def generate(server: Server, num_tokens: int) -> None:
    asked = {"inputs": "Hi", "parameters": {"max_new_tokens": num_tokens, "ignore_eos": True}}
    request = urllib.request.Request(
        server.url + "/generate", json.dumps(asked).encode(), {"content-type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=60) as answer:
        assert answer.status == 200


def windows(server: Server, query: str = "") -> Any:
    with urllib.request.urlopen(f"{server.url}/ops/windows?{query}", timeout=10) as answer:
        return json.load(answer)


def points_until(server: Server, num_tokens: int, query: str = "") -> list[dict[str, Any]]:
    """All points, once they have so many tokens."""
    deadline = time.monotonic() + 20
    while True:
        found = [point for series in windows(server, query)["series"] for point in series["points"]]
        if sum(point["tokens"] for point in found) >= num_tokens:
            return found
        assert time.monotonic() < deadline, found
        time.sleep(0.1)


def total(points: list[dict[str, Any]], name: str) -> float:
    return sum(point[name] for point in points)


def test_a_known_load_is_told_by_every_router_and_after_one_was_killed(start: Callable[[], Server]) -> None:
    with start() as first, start() as second:
        for _ in range(3):
            generate(first, 20)
        generate(second, 7)
        for server in (first, second):
            for query in ("by=candidate", "by=shard", "step=1", "step=60"):
                points = points_until(server, 67, query)
                assert (total(points, "tokens"), total(points, "requests")) == (67, 4)
        assert total(points, "joules") > 0
        assert sum(point["itl_ms"]["num"] for point in points) == 63
        assert len(windows(second, "by=shard")["series"]) == 2
        first.kill()
        with start() as third:
            assert total(points_until(third, 67), "tokens") == 67
            assert total(points_until(third, 67, "step=60"), "tokens") == 67
            assert total(points_until(second, 67), "tokens") == 67
