"""Commands that change what is served: taken at once, carried out behind, and told in the diary."""

from typing import Any

import pytest

from tests.router.http_fakes import Client


async def settled(client: Client, id: str) -> dict[str, Any]:
    """A decision once it is over."""
    await client.controller.stop()
    status, decision = await client.get(f"/ops/decisions/{id}")
    assert status == 200
    assert decision["outcome"] is not None
    return decision


async def begun(client: Client, path: str, body: Any) -> str:
    status, answer = await client.post(path, body)
    assert status == 202, answer
    return answer["decision_id"]


async def test_a_swap_is_taken_at_once_and_carried_out_behind(client: Client) -> None:
    client.dispatcher.may_swap.clear()
    name = client.config.model_name
    id = await begun(client, "/ops/swap", {"candidate": name, "depth": 2, "inflight": "migrate"})
    assert (await client.get(f"/ops/decisions/{id}"))[1]["outcome"] is None
    client.dispatcher.may_swap.set()
    decision = await settled(client, id)
    assert (decision["kind"], decision["by"], decision["outcome"]) == ("swap", "operator", "committed")
    assert decision["chosen"] == {"candidate": name, "depth": 2}
    assert decision["phases_ms"] == {"prepare": 5.0, "commit": 1.0}
    [(target, options)] = client.dispatcher.swaps
    assert (target.config.exit_mode, target.config.num_layers, target.config.exits) == ("capped", 2, "/exits")
    assert (options.inflight, options.drain_s) == ("migrate", 10.0)
    [shard] = (await client.get("/ops/state"))[1]["shards"]
    assert (shard["depth"], shard["version"]) == (2, "v2")


async def test_answers_say_who_began_them(client: Client) -> None:
    async def headers() -> tuple[str, str]:
        async with client.session.post(client.url + "/generate", json={"inputs": "Hi"}) as response:
            return response.headers["x-helios-model"], response.headers["x-helios-version"]

    name = client.config.model_name
    assert await headers() == (name, "v1")
    await settled(client, await begun(client, "/ops/swap", {"candidate": name, "depth": 3}))
    assert await headers() == (name, "v3")
    body = {"inputs": "Hi", "parameters": {"details": True}}
    _, answer = await client.post("/generate", body)
    assert answer["details"]["segments"] == [{"model": name, "version": "v3", "depth": 3, "from_token": 0}]


async def test_without_a_depth_it_is_the_greatest(client: Client) -> None:
    name = client.config.model_name
    await settled(client, await begun(client, "/ops/swap", {"candidate": name}))
    assert client.dispatcher.swaps[0][0].config.num_layers is None


@pytest.mark.parametrize(
    ("asked", "sentence"),
    [
        ({"candidate": "huge"}, "there are smollm2-135m-instruct, gone"),
        ({"candidate": "smollm2-135m-instruct", "depth": 1}, "it has 2, 3, 4"),
        ({"candidate": "gone"}, "cannot be served: it is gone"),
        ({"candidate": "smollm2-135m-instruct", "shard": 5}, "`shard` must be one of 0"),
        ({"candidate": "smollm2-135m-instruct", "inflight": "drop"}, "inflight"),
        ({}, "`candidate` is missing"),
    ],
)
async def test_what_there_is_not_is_422_naming_what_there_is(
    client: Client, asked: dict[str, Any], sentence: str
) -> None:
    status, answer = await client.post("/ops/swap", asked)
    assert status == 422
    assert sentence in answer["error"]
    assert (await client.get("/ops/decisions"))[1] == {"decisions": []}


async def test_a_second_change_while_one_is_under_way_is_409(client: Client) -> None:
    client.dispatcher.may_swap.clear()
    name = client.config.model_name
    first = await begun(client, "/ops/swap", {"candidate": name, "depth": 2})
    for path in ("/ops/swap", "/ops/pin"):
        status, answer = await client.post(path, {"candidate": name, "depth": 3})
        assert (status, answer["error_type"]) == (409, "conflict")
    client.dispatcher.may_swap.set()
    await settled(client, first)
    await begun(client, "/ops/swap", {"candidate": name, "depth": 3})


async def test_a_failure_is_told_and_leaves_what_there_was(client: Client) -> None:
    client.dispatcher.fails_swaps = "There is not enough memory."
    name = client.config.model_name
    for path in ("/ops/swap", "/ops/pin"):
        decision = await settled(client, await begun(client, path, {"candidate": name, "depth": 2}))
        assert (decision["outcome"], decision["error"]) == ("rolled_back", "There is not enough memory.")
    _, state = await client.get("/ops/state")
    assert (state["shards"][0]["depth"], state["pinned"]) == (4, None)


async def test_rollback_goes_back_to_what_served_before(client: Client) -> None:
    status, answer = await client.post("/ops/rollback", {})
    assert (status, "nothing to go back to" in answer["error"]) == (409, True)
    name = client.config.model_name
    await settled(client, await begun(client, "/ops/swap", {"candidate": name, "depth": 2}))
    decision = await settled(client, await begun(client, "/ops/rollback", {}))
    assert (decision["kind"], decision["outcome"]) == ("rollback", "committed")
    assert (await client.get("/ops/state"))[1]["shards"][0]["depth"] == 4


async def test_what_is_pinned_serves_and_stays_named_until_it_is_unpinned(client: Client) -> None:
    name = client.config.model_name
    pinned = await settled(client, await begun(client, "/ops/pin", {"candidate": name, "depth": 3}))
    assert pinned["outcome"] == "committed"
    assert (await client.get("/ops/state"))[1]["pinned"] == f"{name} at 3 layers"
    again = await settled(client, await begun(client, "/ops/pin", {"candidate": name, "depth": 3}))
    assert "It is what serves" in again["why"]
    assert len(client.dispatcher.swaps) == 1
    unpinned = await settled(client, await begun(client, "/ops/unpin", {}))
    assert unpinned["why"] == f"{name} at 3 layers was pinned."
    assert (await client.get("/ops/state"))[1]["pinned"] is None


async def test_a_threshold_holds_for_requests_that_name_none(client: Client) -> None:
    await begun(client, "/ops/threshold", {"value": 0.7})
    assert client.dispatcher.exit_threshold == 0.7
    await begun(client, "/ops/threshold", {"value": None})
    assert client.dispatcher.exit_threshold is None
    for body in ({"value": 1.5}, {"value": 0.5, "exit_layer": 2}, {}):
        assert (await client.post("/ops/threshold", body))[0] == 422


async def test_everything_that_was_ordered_stands_in_the_diary_the_latest_first(client: Client) -> None:
    name = client.config.model_name
    await settled(client, await begun(client, "/ops/swap", {"candidate": name, "depth": 2}))
    await client.post("/ops/drain", {"shard": 0})
    await client.post("/ops/resume", {})
    await begun(client, "/ops/threshold", {"value": 0.5})
    _, listed = await client.get("/ops/decisions")
    kinds = [decision["kind"] for decision in listed["decisions"]]
    assert sorted(kinds) == ["drain", "resume", "swap", "threshold"]
    times = [int(1000 * decision["at"]) for decision in listed["decisions"]]
    assert times == sorted(times, reverse=True)
    _, latest = await client.get("/ops/decisions?limit=1")
    assert len(latest["decisions"]) == 1
    _, later = await client.get(f"/ops/decisions?since={times[0] / 1000 + 1}")
    assert later == {"decisions": []}
    for query, bound in (
        ("limit=many", "from 1 to 1000"),
        ("limit=0", "from 1 to 1000"),
        ("limit=1001", "from 1 to 1000"),
        ("limit=1.5", "a whole number"),
        ("since=-1", "from 0"),
        ("since=nan", "from 0"),
    ):
        status, answer = await client.get(f"/ops/decisions?{query}")
        assert status == 422
        assert f"`{query.partition('=')[0]}` must be" in answer["error"]
        assert bound in answer["error"]
    for id in ("nothing", "9" * 200, "9" * 4400, "9" * 13 + "-x", "9" * 20 + "-x", "9" * 4400 + "-x"):
        status, answer = await client.get(f"/ops/decisions/{id}")
        assert (status, answer["error_type"]) == (404, "decision_not_found")


async def test_state_lists_what_can_be_served(client: Client) -> None:
    _, state = await client.get("/ops/state")
    name = client.config.model_name
    rows = [(row["candidate"], row["depth"], row["num_layers"]) for row in state["candidates"]]
    assert rows == [(name, 2, 4), (name, 3, 4), (name, 4, 4)]
    assert state["objective"] == "throughput"


async def test_every_command_is_told_with_who_and_from_where(client: Client) -> None:
    name, who = client.config.model_name, {"x-helios-operator": "ann@desk"}
    await client.post("/generate", {"inputs": "Hi"})
    commands = {
        "swap": {"candidate": name, "depth": 2},
        "rollback": {},
        "pin": {"candidate": name, "depth": 2},
        "unpin": {},
        "threshold": {"value": 0.5},
        "drain": {},
        "resume": {"shard": 0},
        "abort": {"request_id": 1},
        "cache-clear": {"shard": 0},
    }
    for kind, body in commands.items():
        status, answer = await client.post(f"/ops/{kind.replace('-', '/')}", body, headers=who)
        assert status in (200, 202), answer
        await client.controller.stop()
        decisions = {told["kind"]: told for told in (await client.get("/ops/decisions"))[1]["decisions"]}
        assert (decisions[kind]["by"], decisions[kind]["origin"]) == ("ann@desk", "127.0.0.1")
    _, state = await client.get("/ops/state")
    assert (state["threshold"]["value"], state["threshold"]["by"]) == (0.5, "ann@desk")


@pytest.mark.parametrize("stated", ["loop", "ann", "ann@desk <b>", "a@" + "b" * 65])
async def test_a_name_that_is_no_user_at_a_host_does_not_count(client: Client, stated: str) -> None:
    await client.post("/ops/unpin", {}, headers={"x-helios-operator": stated})
    [decision] = (await client.get("/ops/decisions"))[1]["decisions"]
    assert decision["by"] == "operator"
