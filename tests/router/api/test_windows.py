"""/ops/windows, on known windows."""

import contextlib
import time
from collections.abc import AsyncIterator
from typing import Any

import msgspec
import pytest
from aiohttp import ClientSession, web

from router.api.errors import Refused, error_response
from router.api.windows import MAX_POINTS, PARAMETERS, WindowsApi
from router.api.windows_structs import Windows
from telemetry.rollup import CandidateSum, Rollup
from telemetry.store import Store
from telemetry.window import Record, Window
from tests.router.http_fakes import Client

NOW = 1_000_000.0


class KnownStore(Store):
    """Has these records; `is_away`: only in memory."""

    def __init__(self, records: list[Record], is_away: bool = False):
        super().__init__(None, "poems", "one")
        self._records, self._is_away = records, is_away
        for rollup in self.rollups:
            rollup.add(records)

    async def between(self, since: float, until: float) -> list[Record] | None:
        return None if self._is_away else self.waiting(since, until)

    async def sums(self, rollup: Rollup, since: float, until: float) -> list[CandidateSum] | None:
        return None if self._is_away else rollup.between(since, until)

    def waiting(self, since: float, until: float) -> list[Record]:
        return [record for record in self._records if since <= record.window.start < until]


@contextlib.asynccontextmanager
async def served(*records: Record, is_away: bool = False) -> AsyncIterator[Any]:
    """`ask("since=1&by=shard")` is the status and the body."""
    api = WindowsApi(KnownStore(list(records), is_away), unix_s=lambda: NOW)

    async def handle(http: web.Request) -> web.Response:
        try:
            return await api.windows(http)
        except Refused as refused:
            return error_response(refused, openai=False)

    app = web.Application()
    app.router.add_get("/ops/windows", handle)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    host, port = runner.addresses[0][:2]

    async def ask(query: str = "") -> tuple[int, Any]:
        async with (
            ClientSession() as session,
            session.get(f"http://{host}:{port}/ops/windows?{query}") as got,
        ):
            return got.status, await got.json()

    yield ask
    await runner.cleanup()


def window(at: float, **sums: Any) -> Window:
    return Window(start=at, end=at + 1, **sums)


async def test_a_step_sums_up_its_windows() -> None:
    first = window(
        NOW - 20, tokens_by_exit={10: 3, 30: 1}, requests=2, num_steps=4, batched=8, waiting=6, breaches=1,
        drafted=5, accepted=4, draft_saved_ms=1500.0,
    )  # fmt: skip
    second = window(NOW - 19, tokens_by_exit={30: 6}, failures=1, joules=20.0, metered_tokens=10)
    second.answers.add(10, 9, -5.0)
    second.answers.add(10, 10, -5.0)
    for ms in (10.0, 20.0, 30.0):
        first.ttft_ms.add(ms)
    first.most_blocks, first.fewest_free_blocks = 100, 40
    records = [Record(0, "chat", 30, first, "one"), Record(1, "chat", 30, second, "two")]
    async with served(*records) as ask:
        status, body = await ask(f"since={NOW - 20}&until={NOW}&step=10")
        assert status == 200
        msgspec.convert(body, Windows, strict=False)
        [series] = body["series"]
        assert (series["name"], series["candidate"], series["depth"]) == ("chat@30", "chat", 30)
        [point] = series["points"]
        assert (point["at"], point["seconds"]) == (NOW - 20, 10)
        assert (point["tokens"], point["tokens_per_s"]) == (10, 1.0)
        assert point["tokens_by_exit"] == {"10": 3, "30": 7}
        assert point["mean_exit_layer"] == 24
        assert (point["requests"], point["failures"], point["breaches"]) == (2, 1, 1)
        assert point["breach_rate"] == 0.1
        assert (point["drafted"], point["accepted"], point["draft_saved_s"]) == (5, 4, 1.5)
        assert (point["mean_batch"], point["mean_waiting"], point["kv_use"]) == (2, 1.5, 0.6)
        assert (point["joules"], point["joules_per_token"]) == (20, 2)
        assert point["ttft_ms"]["num"] == 3
        assert point["ttft_ms"]["p50"] == pytest.approx(20, rel=0.02)
        assert point["itl_ms"] is None
        assert point["agreement"]["agreement"] == 0.95
        assert 0 < point["agreement"]["low"] < 0.95 < point["agreement"]["high"] <= 1
        assert point["scored_answers"] == 2


async def test_by_shard_the_same_tokens_are_told_apart() -> None:
    records = [
        Record(shard, candidate, 30, window(NOW - 5, tokens_by_exit={30: tokens}), router)
        for shard, candidate, tokens, router in [(0, "a", 1, "x"), (0, "b", 2, "x"), (1, "a", 4, "x")]
    ] + [Record(0, "a", 30, window(NOW - 5, tokens_by_exit={30: 8}), "y")]
    async with served(*records) as ask:
        _, body = await ask("by=shard")
        found = {(one["router"], one["shard"]): one["points"][0]["tokens"] for one in body["series"]}
        assert found == {("x", 0): 3, ("x", 1): 4, ("y", 0): 8}


@pytest.mark.parametrize("step", [1, 5])  # from windows, and from their sums
async def test_all_are_told_as_one(step: int) -> None:
    slow, fast = window(NOW - 5, tokens_by_exit={30: 1}), window(NOW - 5, tokens_by_exit={10: 2, 30: 4})
    for ms in (10.0, 30.0):
        slow.itl_ms.add(ms)
    fast.itl_ms.add(20.0)
    async with served(Record(0, "a", 30, slow, "x"), Record(1, "b", 30, fast, "y")) as ask:
        _, body = await ask(f"by=all&step={step}")
        [series] = body["series"]
        assert (series["name"], series["candidate"], series["shard"]) == ("all", None, None)
        [point] = series["points"]
        assert (point["tokens"], point["tokens_by_exit"]) == (7, {"10": 2, "30": 5})
        assert point["itl_ms"]["p50"] == pytest.approx(20, rel=0.02)


async def test_a_day_is_told_by_minutes_and_an_hour_by_seconds() -> None:
    made = [NOW - 86_000, NOW - 4000, NOW - 100, NOW - 1]
    records = [Record(shard, "a", 30, window(at, tokens_by_exit={30: 1})) for at in made for shard in (0, 1)]
    async with served(*records) as ask:
        for query, step, kept_s in [
            (f"since={NOW - 86_400}", 300, 86_400),
            (f"since={NOW - 86_400}&step=60", 60, 86_400),
            (f"since={NOW - 3700}", 60, 86_400),
            (f"since={NOW - 3600}", 15, 3600),
            (f"since={NOW - 3700}&by=shard", 15, 3600),
        ]:
            _, body = await ask(query)
            assert (body["step"], body["kept_s"]) == (step, kept_s), query
            points = [point for one in body["series"] for point in one["points"]]
            expected = 2 * sum(at >= body["since"] for at in made)
            assert sum(point["tokens"] for point in points) == expected, query
        assert body["until"] == NOW


async def test_with_steps_of_minutes_whole_minutes_are_told() -> None:
    async with served(Record(0, "a", 30, window(NOW, tokens_by_exit={30: 5}))) as ask:
        _, body = await ask(f"since={NOW - 600}&until={NOW - 30}&step=60")
        assert (body["since"], body["until"]) == (NOW - 640, NOW - 40 + 60)
        assert body["series"][0]["points"][0]["at"] == NOW - 40


async def test_the_answer_is_bounded_and_nothing_is_left_out_of_its_sum() -> None:
    records = [
        Record(shard, "a", 30, window(NOW - 1440 + at, tokens_by_exit={30: 1 + shard}), "x")
        for at in range(0, 1440, 8)
        for shard in range(200)
    ]
    async with served(*records) as ask:
        _, body = await ask(f"since={NOW - 1440}&step=1&by=shard")
        points = [point for one in body["series"] for point in one["points"]]
        assert len(points) <= MAX_POINTS + 1440
        assert body["series"][-1]["name"] == "others"
        assert "199" in {one["name"].removeprefix("x/") for one in body["series"]}
        assert sum(point["tokens"] for point in points) == 180 * 200 * 201 / 2


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ("since=x", "`since` must be a number from 0 to 100000000000. Given: x"),
        ("since=nan", "`since` must be a number"),
        ("since=", "`since` must be a number"),
        ("since=1&since=2", "`since` must be given once"),
        ("until=-1", "`until` must be a number from 0"),
        ("until=5&since=5", "`since` must be less than `until`, which is 5. Given: 5"),
        ("until=100000&since=1", "`since` must be a day before `until` at most, 13600. Given: 1"),
        ("step=0", "`step` must be a whole number from 1 to 3600. Given: 0"),
        ("step=1.5", "`step` must be a whole number from 1 to 3600. Given: 1.5"),
        ("since=0&until=86400&step=59", "`step` must be 60 at least for 86400 seconds. Given: 59"),
        ("by=model", "`by` must be one of candidate, shard, all. Given: model"),
    ],
)
async def test_a_bad_parameter_is_named_with_its_bounds(query: str, message: str) -> None:
    async with served() as ask:
        status, body = await ask(query)
        assert status == 422
        assert message in body["error"]


async def test_without_parameters_it_is_the_last_quarter_of_an_hour() -> None:
    async with served() as ask:
        _, body = await ask()
        assert (body["until"] - body["since"], body["step"], body["by"]) == (900, 5, "candidate")
        assert body["redis"] == "ok"


async def test_while_redis_is_away_it_tells_what_waits_in_memory() -> None:
    async with served(Record(0, "a", 3, window(NOW - 5, tokens_by_exit={3: 7})), is_away=True) as ask:
        _, body = await ask()
        assert body["redis"] == "lost"
        assert body["series"][0]["points"][0]["tokens"] == 7


async def test_windows_are_an_operators(client: Client) -> None:
    before = time.time() - 1
    status, body = await client.get("/ops/windows", headers={"Origin": "http://evil.example"})
    assert status == 403
    status, body = await client.get("/ops/windows")
    assert (status, body["redis"], body["series"]) == (200, "lost", [])
    assert body["until"] > before
    _, document = await client.get("/openapi.json")
    parameters = document["paths"]["/ops/windows"]["get"]["parameters"]
    assert {one["name"] for one in parameters} == {one.name for one in PARAMETERS}
