"""The page at `/ops` in a real browser, before a real server with simulated shards and a real Redis."""

import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, Route, expect

from telemetry.embedded import find_server
from tests.browsing import PHONE, visiting
from tests.running import Server
from tests.telemetry.redis_server import RedisServer
from tests.telemetry.terminal.serving import generate, get, simulated

ADMIN_KEY = "adm1n"
SCRIPT = "<script>document.title='owned'</script>"
NUM_TOKENS = 20
SERIOUS = ("serious", "critical")


@pytest.fixture(scope="module")
def redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    binary = find_server()
    assert binary is not None
    with RedisServer(binary, tmp_path_factory.mktemp("redis")) as redis:
        yield redis


@pytest.fixture(scope="module")
def server(
    serve: Callable[..., Server],
    tiny_model: Callable[[str], Path],
    tmp_path_factory: pytest.TempPathFactory,
    redis: RedisServer,
) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("page")
    settings: dict[str, Any] = {"admin_key": ADMIN_KEY, "redis_url": redis.url, "deployment": "poems"}
    with simulated(serve, tiny_model, folder, ADMIN_KEY, num_shard=2, score_rate=1, **settings) as server:
        yield server


def give_key(page: Page, key: str = ADMIN_KEY) -> None:
    page.get_by_label("The admin key").fill(key)
    page.get_by_role("button", name="Use this key").click()


def until_drawn_anew(page: Page, before: bytes) -> None:
    for _ in range(100):
        if page.locator("#chart-throughput canvas").screenshot() != before:
            return
        page.wait_for_timeout(200)
    raise AssertionError("the chart stands still")


def test_charts_move_and_tables_show_what_was_served(server: Server, browser: Browser) -> None:
    with visiting(browser, f"{server.url}/ops") as visit:
        page = visit.page
        give_key(page, "wrong")
        expect(page.get_by_role("dialog")).to_contain_text("refused that key")
        assert page.locator(".tile").count() == 0  # nothing is shown before the right key
        give_key(page)
        expect(page.locator("#live")).to_have_text("live")
        generate(server, NUM_TOKENS)
        expect(page.locator("#chart-throughput .value").last).not_to_have_text("–", timeout=20_000)
        expect(page.locator("#chart-exits .legend")).to_contain_text("30, full depth")
        before = page.locator("#chart-throughput canvas").screenshot()
        generate(server, NUM_TOKENS)
        until_drawn_anew(page, before)
        for span in ("5 min", "1 h", "6 h", "24 h"):
            with page.expect_response("**/ops/windows?**") as answer:
                page.get_by_role("button", name=span, exact=True).click()
            assert answer.value.status == 200
            expect(page.locator("#chart-exits .legend")).to_contain_text("30, full depth")
        expect(page.locator("#panel tbody tr")).to_have_count(2)
        page.get_by_role("tab", name="Candidates").click()
        expect(page.locator("#panel")).to_contain_text("code")
        assert [
            fault for fault in visit.faults if "401" not in fault
        ] == []  # Chromium's own line on the wrong key


def test_a_change_made_on_the_page_happens_and_stands_on_the_time_line(
    server: Server, browser: Browser
) -> None:
    with visiting(browser, f"{server.url}/ops") as visit:
        page = visit.page
        give_key(page)
        page.get_by_role("button", name="Change model or depth").click()
        dialog = page.get_by_role("dialog")
        dialog.get_by_label("Depth").select_option("10")
        expect(dialog).to_contain_text("Shards 0–1: chat at 30 of 30 layers → chat at 10 of 30 layers.")
        dialog.get_by_role("button", name="Change").click()
        expect(page.locator("#outcome")).to_contain_text("swap: committed in", timeout=20_000)
        mark = page.get_by_role("button", name=re.compile(r"swap · chat@10 · committed"))
        expect(mark).to_be_visible()
        expect(page.locator("#now")).to_contain_text("chat at 10 of 30 layers on 2 shards")
        assert {shard["depth"] for shard in get(server, "/ops/state", ADMIN_KEY)["shards"]} == {10}
        mark.click()
        expect(page.get_by_role("dialog")).to_contain_text("An operator asked for it.")


def test_a_label_that_is_a_script_stays_text(server: Server, browser: Browser) -> None:
    generate(server, NUM_TOKENS, label=SCRIPT)
    with visiting(browser, f"{server.url}/ops") as visit:
        page = visit.page
        give_key(page)
        page.get_by_role("tab", name="Requests").click()
        row = page.locator("#panel tbody tr", has_text=SCRIPT)
        expect(row).to_have_count(1)
        row.get_by_role("button").click()
        expect(page.get_by_role("dialog")).to_contain_text(SCRIPT)
        expect(page.get_by_role("dialog")).to_contain_text("first token")
        assert page.title() == "Helios: Operation"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_is_accessible_and_never_scrolls_sideways(server: Server, browser: Browser, scheme: str) -> None:
    for screen in ({}, PHONE):
        with visiting(browser, f"{server.url}/ops", color_scheme=scheme, **screen) as visit:
            page = visit.page
            give_key(page)
            expect(page.locator("#panel tbody tr")).to_have_count(2)
            found = Axe().run(page).response["violations"]
            assert [fault["id"] for fault in found if fault["impact"] in SERIOUS] == [], found
            assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


def test_without_redis_it_says_so_keeps_what_it_had_and_goes_on_by_itself(
    server: Server, browser: Browser, redis: RedisServer
) -> None:
    generate(server, NUM_TOKENS)
    with visiting(browser, f"{server.url}/ops") as visit:
        page = visit.page
        give_key(page)
        answers = page.locator(".tile", has_text="Answers in a minute").locator(".figure")
        expect(answers).not_to_have_text("–")
        shown = answers.inner_text()
        redis.stop()
        expect(page.get_by_role("alert")).to_contain_text(
            "Redis does not answer. Figures are", timeout=20_000
        )
        assert answers.inner_text() == shown != "0"
        expect(page.locator("#panel tbody tr")).to_have_count(2)
        redis.start()
        expect(page.get_by_role("alert")).to_be_hidden(timeout=20_000)
        expect(page.locator("#live")).to_have_text("live")


def test_without_its_router_it_says_so_and_goes_on_by_itself(server: Server, browser: Browser) -> None:
    with visiting(browser, f"{server.url}/ops") as visit:
        page = visit.page
        give_key(page)
        expect(page.locator("#live")).to_have_text("live")
        page.context.set_offline(True)
        alert = page.get_by_role("alert")
        expect(alert).to_contain_text(
            re.compile(r"does not answer; trying again. Shown is what it said \S+ s ago")
        )
        expect(page.locator("#panel tbody tr")).to_have_count(2)
        page.context.set_offline(False)
        expect(alert).to_be_hidden(timeout=20_000)


def test_a_router_killed_and_started_anew_is_shown_with_all_that_both_have_served(
    serve: Callable[..., Server],
    tiny_model: Callable[[str], Path],
    tmp_path: Path,
    redis: RedisServer,
    browser: Browser,
) -> None:
    settings: dict[str, Any] = {"admin_key": ADMIN_KEY, "redis_url": redis.url, "deployment": "killed"}

    def started(port: int) -> Server:
        return simulated(serve, tiny_model, tmp_path, ADMIN_KEY, port=port, **settings)

    with started(0) as first, visiting(browser, f"{first.url}/ops") as visit:
        page, alert = visit.page, visit.page.get_by_role("alert")
        answers = page.locator(".tile", has_text="Answers in a minute").locator(".figure")
        give_key(page)
        for _ in range(2):
            generate(first, NUM_TOKENS)
        expect(answers).to_have_text("2", timeout=20_000)
        first.kill()
        expect(alert).to_contain_text("does not answer; trying again", timeout=20_000)
        expect(answers).to_have_text("2")
        with started(int(first.url.rpartition(":")[2])) as second:
            generate(second, NUM_TOKENS)
            expect(alert).to_be_hidden(timeout=20_000)
            expect(answers).to_have_text("3", timeout=20_000)
            expect(page.locator("#deployment")).to_have_text("killed, 2 routers")
            expect(page.locator("#live")).to_have_text("live, 1 router down")
            expect(page.locator("#now")).to_contain_text("chat at 30 of 30 layers on 1 shard")
            down = page.locator("#panel tbody tr", has_text="router down")
            expect(down).to_have_count(1)
            expect(down.get_by_role("button")).to_have_count(0)  # which would concern this router's shard 0
            own = page.locator("#panel tbody tr", has_text="serving")
            expect(own.get_by_role("button")).to_have_count(3)


def test_a_figure_of_one_step_with_none_beside_it_is_drawn(server: Server, browser: Browser) -> None:
    """As of a request now and then: its step had no width, and nothing was to be seen of it."""

    def answer(route: Route) -> None:
        query = parse_qs(urlsplit(route.request.url).query)
        step, until = int(query["step"][0]), float(query["until"][0])
        windows = get(server, f"/ops/windows?by=all&step={step}", ADMIN_KEY)
        [point] = windows["series"][0]["points"][-1:]
        at = (until - 200) // step * step
        windows |= {"since": at, "until": until, "step": step}
        windows["series"][0]["points"] = [point | {"at": at}]
        route.fulfill(json=windows)

    generate(server, NUM_TOKENS)
    until_kept(server)
    with visiting(browser, "about:blank") as visit:
        page = visit.page
        page.route("**/ops/windows?**", answer)
        page.goto(f"{server.url}/ops")
        give_key(page)
        expect(page.locator("#chart-ttft .value").last).not_to_have_text("–", timeout=20_000)
        for chart in ("exits", "ttft", "itl"):
            assert num_colors(page, chart) > 0, chart


def until_kept(server: Server) -> None:
    while not any(
        series["points"] for series in get(server, "/ops/windows?by=all&step=5", ADMIN_KEY)["series"]
    ):
        time.sleep(0.1)


def num_colors(page: Page, chart: str) -> int:
    """Pixels of a chart that are no grey: those of its lines and areas, where it has no marks."""
    count = """canvas => {
      const { data } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
      let found = 0;
      for (let i = 0; i < data.length; i += 4) {
        const [red, green, blue, alpha] = data.slice(i, i + 4);
        if (alpha > 100 && Math.max(red, green, blue) - Math.min(red, green, blue) > 60) found++;
      }
      return found;
    }"""
    return int(page.locator(f"#chart-{chart} canvas").evaluate(count))


def test_the_charts_cursor_moves_by_keys(server: Server, browser: Browser) -> None:
    generate(server, NUM_TOKENS)
    with visiting(browser, f"{server.url}/ops") as visit:
        page = visit.page
        give_key(page)
        expect(page.locator("#chart-exits .legend")).to_contain_text("100%", timeout=20_000)
        page.locator("#charts").focus()
        page.keyboard.press("ArrowLeft")
        expect(page.locator(".timeline .cursor")).to_be_visible()
