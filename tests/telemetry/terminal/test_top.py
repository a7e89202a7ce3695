"""`helios top`, driven: numbers shown are numbers served, with routers killed, doubled, and Redis away."""

import asyncio
import json
import re
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest
from textual.widgets import Static

from telemetry.audit import Decision, Outcome
from telemetry.embedded import find_server
from telemetry.history import Interval, Row
from telemetry.overview import Figures, Overview, RouterRow, ShardFigures, ShardRow
from telemetry.snapshot import (
    AgreementView,
    Breaches,
    CandidateView,
    LoopState,
    Moment,
    RequestView,
    ShardView,
    ShareView,
    Snapshot,
    ThresholdSetting,
)
from telemetry.terminal.client import Client
from telemetry.terminal.top.__main__ import main
from telemetry.terminal.top.app import Top
from telemetry.terminal.top.grid import Grid
from telemetry.terminal.top.source import Away, RedisSource, RouterSource
from tests.running import Server
from tests.telemetry.redis_server import RedisServer
from tests.telemetry.terminal.serving import LABEL, PROMPT, generate, get, simulated

SMALL, WIDE = (80, 24), (160, 48)
NUM_TOKENS = 7


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[RedisServer]:
    binary = find_server()
    assert binary is not None
    (tmp_path / "redis").mkdir()
    with RedisServer(binary, tmp_path / "redis") as server:
        yield server


@pytest.fixture
def start(
    serve: Callable[..., Server], tiny_model: Callable[[str], Path], tmp_path: Path, redis: RedisServer
) -> Callable[[], Server]:
    """Start a router of the deployment `poems`."""
    return lambda: simulated(serve, tiny_model, tmp_path, redis_url=redis.url, deployment="poems")


def text_of(app: Top) -> str:
    """What stands on the screen."""
    widgets = [*app.screen.query(Static), *app.screen.query(Grid)]
    return "\n".join(
        widget.render_line(y).text.rstrip() for widget in widgets for y in range(widget.size.height)
    )


async def until(app: Top, words: str) -> str:
    """What stands on the screen once these words (a pattern) do."""
    async with asyncio.timeout(20):
        while True:
            await app.has_read()
            await asyncio.sleep(0)
            text = text_of(app)
            if re.search(words, text):
                return text


def answer(server: Server, num_requests: int) -> list[str]:
    return [generate(server, NUM_TOKENS) for _ in range(num_requests)]


async def test_numbers_shown_are_numbers_served_also_after_a_kill_and_a_new_start(
    start: Callable[[], Server], redis: RedisServer
) -> None:
    app = Top(RedisSource(redis.url, "poems"), interval_s=0.1)
    async with app.run_test(size=SMALL) as pilot:
        await until(app, "No router has written here")
        with start() as first:
            await asyncio.to_thread(answer, first, 5)
            text = await until(app, r"answers +5 in 60 s, 0 failed")
            [shard] = get(first, "/ops/state")["shards"]
            assert re.search(rf"0 +chat +30/30 .*serving +0 +0/{shard['num_blocks']} ", text)
            assert re.search(r"chat@30 +30 █+ 100%", text)
            await pilot.resize_terminal(*WIDE)
            text = await until(app, rf"answers +5 in 60 s, 0 failed, {5 * NUM_TOKENS} tokens")
            assert shard["version"] in text
            first.stop(signal.SIGKILL)
        text = await until(app, r"OLD by \d+\.\d s: No router writes\.")
        assert re.search(r"answers +5 in 60 s", text)
        assert re.search(r"0 +chat +30/30 .*router down +0 ", text)
        with start() as second:
            await asyncio.to_thread(answer, second, 3)
            text = await until(app, r"answers +8 in 60 s")
            assert "OLD" not in text
            assert "2 routers, 1 down" in text


async def test_two_routers_are_summed_and_told_apart(start: Callable[[], Server], redis: RedisServer) -> None:
    app = Top(RedisSource(redis.url, "poems"), interval_s=0.1)
    with start() as one, start() as two:
        await asyncio.gather(asyncio.to_thread(answer, one, 4), asyncio.to_thread(answer, two, 2))
        async with app.run_test(size=SMALL):
            text = await until(app, r"answers +6 in 60 s, 0 failed")
            assert "2 routers, 2 shards" in text
            assert len(re.findall(r"[0-9a-f]{4}:0 +chat +30/30 ", text)) == 2
            overview = app.state.overview
            assert overview is not None
            assert (overview.total.requests, overview.total.tokens) == (6, 6 * NUM_TOKENS)
            assert overview.total.tokens_by_exit == {30: 6 * NUM_TOKENS}
            by_router = await RouterSource(Client(two.url)).read()
            assert by_router.total.requests == 6
            assert [row.snapshot.router for row in by_router.routers] == [
                row.snapshot.router for row in overview.routers
            ]


async def test_while_redis_is_away_the_last_state_stays_with_its_age_and_comes_back_by_itself(
    start: Callable[[], Server], redis: RedisServer
) -> None:
    app = Top(RedisSource(redis.url, "poems"), interval_s=0.1)
    with start() as server:
        await asyncio.to_thread(answer, server, 2)
        async with app.run_test(size=WIDE):
            await until(app, r"answers +2 in 60 s")
            redis.stop()
            text = await until(app, r"OLD by \d+\.\d s: Redis does not answer")
            assert re.search(r"answers +2 in 60 s", text)
            grid = app.screen.query_one(Grid)
            assert grid.is_stale
            redis.start()
            await until(app, r"1 router, 1 shard")
            assert not app.state.is_stale
            assert not grid.is_stale


async def test_a_router_shows_itself_by_its_url_and_what_changes(
    serve: Callable[..., Server], tiny_model: Callable[[str], Path], tmp_path: Path
) -> None:
    with simulated(serve, tiny_model, tmp_path) as server:
        app = Top(RouterSource(Client(server.url)), interval_s=0.1)
        async with app.run_test(size=WIDE) as pilot:
            await until(app, "1 router, 1 shard")
            client = Client(server.url)
            client.post("/ops/swap", {"candidate": "code"})
            await until(app, r"change +0 requests held; prepare on shard 0")
            await until(app, r"0 +code +30/30 ")
            client.post("/ops/threshold", {"value": 0.5})
            await until(app, r"exits +threshold 0\.5, set by \S+@\S+")
            server.stop()
            await until(app, r"OLD by .*No server answers")
            await pilot.press("d", "enter")
            await pilot.pause()
            assert "threshold 0.5" in text_of(app)


async def test_no_word_of_a_client_is_in_redis_or_on_the_screen(
    start: Callable[[], Server], redis: RedisServer, capsys: pytest.CaptureFixture[str]
) -> None:
    app = Top(RedisSource(redis.url, "poems"), interval_s=0.1)
    with start() as server:
        await asyncio.to_thread(answer, server, 1)
        async with app.run_test(size=WIDE) as pilot:
            await until(app, r"answers +1 in 60 s")
            screens = [text_of(app)]
            for key in ("c", "d", "r", "enter"):
                await pilot.press(key)
                await pilot.pause()
                screens.append(text_of(app))
        assert "first_token" in screens[-1]
        assert await asyncio.to_thread(main, ["--redis", redis.url, "--deployment", "poems", "--once"]) == 0
        with redis.client() as client:
            dumps = [client.dump(key) or b"" for key in client.scan_iter()]
        assert len(dumps) >= 3
        found = "\n".join([*screens, capsys.readouterr().out]).encode() + b"\n".join(dumps)
        for words in (PROMPT, "secret", LABEL):
            assert words.encode() not in found


def test_once_prints_for_people_and_scripts(
    start: Callable[[], Server], redis: RedisServer, capsys: pytest.CaptureFixture[str]
) -> None:
    place = ["--redis", redis.url, "--deployment", "poems", "--once"]
    with start() as server:
        answer(server, 3)
        overview: dict = {}
        while overview.get("total", {}).get("requests") != 3:
            assert main([*place, "--json"]) == 0
            overview = json.loads(capsys.readouterr().out)
        assert overview["total"]["tokens_by_exit"] == {"30": 3 * NUM_TOKENS}
        assert overview["shards"][0]["shard"]["model"] == "chat"
        assert main(place) == 0
        assert re.search(r"answers +3 in 60 s, 0 failed, 21 tokens", capsys.readouterr().out)
    redis.stop()
    assert main(place) == 3
    assert capsys.readouterr().err.startswith("helios top: Redis does not answer")
    assert main(["--url", "http://127.0.0.1:9", "--once"]) == 3
    for wrong in (["--redis", "http://x"], ["--redis", redis.url, "--url", "http://x"], ["--json"], []):
        assert main(wrong) == 2
    assert redis.url not in capsys.readouterr().err


class Given:
    """A source of one overview, until it is told to fail."""

    def __init__(self, overview: Overview):
        self.overview = overview
        self.fails = ""

    async def read(self) -> Overview:
        if self.fails:
            raise Away(self.fails)
        return self.overview

    async def close(self) -> None:
        pass


def made(num_shards: int = 3, why: str = "An operator asked for it.") -> Overview:
    """An overview in which every figure is another."""
    snapshot = Snapshot(
        router="host-7-abcd",
        at=time.time(),
        objective="energy",
        floor=0.61,
        waiting=12,
        queued_tokens=480,
        running=40,
        held=3,
        pinned="chat at 20 layers",
        threshold=ThresholdSetting(0.55, "ann@desk", "1"),
        refusals={"validation": 4, "overloaded": 9},
        agreement=AgreementView(30, ShareView(1000, 972, 0.972, 0.951, 0.984)),
        reassessment=LoopState(
            "watching",
            "chat at 20 layers",
            None,
            why,
            77,
            23,
            [Breaches("chat at 20 layers", 8, 90, 50, 100)],
        ),
        candidates=[CandidateView("chat", 20, 30), CandidateView("code", 15, 30)],
        requests=[
            RequestView(
                5,
                "running",
                exit_layers=[20, 20, 30, 0],
                timeline=[Moment(0.0, "queued"), Moment(2.5, "started", 1, "chat", 20, 7)],
            )
        ],
    )
    shards = [
        ShardRow(
            snapshot.router,
            ShardView(
                id,
                "swapping",
                "chat",
                "v1",
                20,
                30,
                "capped",
                running=id,
                swap_phase="commit",
                exit_thresholds={10: 0.648, 20: 1.0},
            ),
            ShardFigures(100.0, 35.0),
        )
        for id in range(num_shards)
    ]
    row = Row(candidate="code", depth=15, measured_at=int(time.time()), num_requests=66, prompts="code")
    return Overview(
        at=time.time(),
        deployment="poems",
        routers=[RouterRow(0.1, True, snapshot)],
        shards=shards,
        total=Figures(requests=5, failures=1, tokens=50, tokens_per_s=300.0),
        models=[Figures(candidate="chat", depth=20, tokens=50, tokens_by_exit={10: 20, 20: 30})],
        history=[row, Row(candidate="code", depth=15, measured_at=1, agreement=Interval(0.9, 0.8, 0.95, 9))],
        decisions=[
            Decision(
                id="2", at=2.0, kind="swap", by="ann@desk", origin="::1", why=why, phases_ms={"commit": 3.0}
            ),
            Decision(id="1", at=1.0, kind="stay", outcome=Outcome.COMMITTED, why="It is the best."),
        ],
    )


@pytest.mark.parametrize("size", [SMALL, WIDE])
async def test_what_an_operator_asks_first_is_on_the_first_screen(size: tuple[int, int]) -> None:
    app = Top(Given(made()), interval_s=0.05)
    async with app.run_test(size=size):
        text = await until(app, "poems")
    for words in (
        "40 running, 12 waiting (480 tokens), 300 tokens/s, 105 W",
        "3 requests held; commit on shard 0, 1, 2",
        "refused",
        "9 overloaded, 4 validation",
        "agreement 97.2% [95.1%, 98.4%], floor 61.0%",
        "threshold 0.55, set by ann@desk; breaches 8 of 90 (limit 50 of 100)",
        "watching at chat at 20 layers, pinned to chat at 20 layers, next in 23 answers",
        "swapping (commit)",
        "for energy",
        "under way ann@desk: swap",
    ):
        assert words in " ".join(text.split())
    assert re.search(r"chat@20 +10 █+ 40%  20 █+ 60%", text)
    assert max(map(len, text.splitlines())) <= size[0]


async def test_thresholds_are_told_by_exit_layer() -> None:
    overview = made()
    [router] = overview.routers
    own = msgspec.structs.replace(router.snapshot, threshold=ThresholdSetting())
    routers = [msgspec.structs.replace(router, snapshot=own)]
    app = Top(Given(msgspec.structs.replace(overview, routers=routers)), interval_s=0.05)
    async with app.run_test(size=SMALL):
        await until(app, r"exits +own thresholds 10: 0\.648, 20: never; breaches 8 of 90")


async def test_what_a_router_that_is_down_served_last_is_counted_no_more() -> None:
    overview = made()
    [live] = overview.routers
    gone = msgspec.structs.replace(live, is_alive=False, snapshot=Snapshot(router="host-8-dead", at=1.0))
    last = ShardView(0, "swapping", "chat", "v1", 20, 30, swap_phase="drain")
    shards = [*overview.shards, ShardRow(gone.snapshot.router, last, ShardFigures(100.0, 35.0))]
    app = Top(Given(msgspec.structs.replace(overview, routers=[live, gone], shards=shards)), interval_s=0.05)
    async with app.run_test(size=WIDE) as pilot:
        text = await until(app, r"dead:0 +chat +20/30 .*router down")
        assert "105 W" in text
        assert re.search(r"change +3 requests held; commit on shard 0, 1, 2 *\n", text)
        await pilot.press("c")
        await until(app, r"chat +20/30 +3 ")


async def test_without_redis_a_router_has_no_figures_rather_than_zeros() -> None:
    overview = msgspec.structs.replace(made(), redis="lost", total=Figures(), models=[])
    app = Top(Given(overview), interval_s=0.05)
    async with app.run_test(size=WIDE):
        text = await until(app, r"REDIS LOST: this router alone, without figures")
        assert re.search(r"answers +not known without Redis; refused: 9 overloaded", text)
        assert "- tokens/s" in text
        assert re.search(r"exits +not known without Redis", text)
        assert "no tokens" not in text


async def test_of_many_models_those_that_serve_are_shown_where_tokens_left() -> None:
    overview = made()
    replaced = [
        Figures(candidate=f"old{depth}", depth=depth, tokens=1000, tokens_by_exit={depth: 1000})
        for depth in (10, 15)
    ]
    app = Top(Given(msgspec.structs.replace(overview, models=[*replaced, *overview.models])), interval_s=0.05)
    async with app.run_test(size=SMALL):
        text = await until(app, r"chat@20 +10 █+ 40%")
        assert text.index("chat@20 ") < text.index("old10@10 ")
        assert "old15@15" not in text


async def test_keys_look_into_a_shard_a_candidate_a_decision_and_a_request() -> None:
    app = Top(Given(made()), interval_s=0.05)
    async with app.run_test(size=SMALL) as pilot:
        await until(app, "poems")
        for keys, words in [
            (("s", "down", "enter"), ["shard 1", "capped", "thresholds 10: 0.648", "20: never", "35 W"]),
            (
                ("c", "down", "enter"),
                ["candidate code at 15 layers", "66, 0 tokens", "90.0% [80.0%, 95.0%] over 9"],
            ),
            (("d", "enter"), ["decision 2", "ann@desk from ::1", "commit", "3.0 ms", "under way"]),
            (
                ("r", "enter"),
                [
                    "request 5",
                    "20 x2, 30, forced",
                    "+2.5 ms",
                    "started on shard 1, chat at 20 layers, 7 tokens",
                ],
            ),
        ]:
            await pilot.press(*keys)
            await pilot.pause()
            text = text_of(app)
            for word in words:
                assert word in text
            await pilot.press("escape")
        await pilot.pause()
        assert "requests" in text_of(app)


async def test_the_cursor_stays_on_its_row_and_any_number_of_rows_is_reached() -> None:
    source = Given(made(1000))
    app = Top(source, interval_s=0.05)
    async with app.run_test(size=SMALL) as pilot:
        await until(app, "of 1,000")
        await pilot.press("end", "up", "up")
        source.overview = made(999)
        await until(app, "of 999")
        await pilot.press("enter")
        await pilot.pause()
        assert "shard 997" in text_of(app)


async def test_columns_stay_where_they_are_while_their_cells_change() -> None:
    source = Given(made())
    app = Top(source, interval_s=0.05)

    def header() -> str:
        return app.screen.query_one(Grid).render_line(0).text

    async with app.run_test(size=SMALL):
        await until(app, r"swapping \(commit\)")
        before = header()
        row = source.overview.shards[0]
        shard = msgspec.structs.replace(row.shard, state="serving", swap_phase="")
        source.overview = msgspec.structs.replace(
            source.overview, shards=[msgspec.structs.replace(row, shard=shard)]
        )
        await until(app, r"chat +20/30 +capped +serving")
        assert header() == before


async def test_what_stands_in_a_reason_is_neither_markup_nor_obeyed() -> None:
    why = "[red]x[/red] <script> \x1b[2J\x07\nnext"
    app = Top(Given(made(why=why)), interval_s=0.05)
    async with app.run_test(size=WIDE) as pilot:
        text = await until(app, "poems")
        assert "[red]x[/red] <script>  [2J  next" in text
        await pilot.press("d", "enter")
        await pilot.pause()
        assert "[red]x[/red] <script>" in text_of(app)


async def test_what_is_old_says_so_in_words_and_goes_on_ageing() -> None:
    source = Given(made())
    app = Top(source, interval_s=0.05)
    async with app.run_test(size=SMALL):
        await until(app, "poems")
        source.fails = "It is away."
        await until(app, r"OLD by 0\.\d s: It is away\.")
        await until(app, r"OLD by 1\.\d s: It is away\.")
        source.fails = ""
        await until(app, "1 router, 3 shards")
        assert "OLD" not in text_of(app)
