"""The page at `/ops` in a real browser, before a real server with simulated shards and a real Redis."""

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, expect

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


def test_the_charts_cursor_moves_by_keys(server: Server, browser: Browser) -> None:
    generate(server, NUM_TOKENS)
    with visiting(browser, f"{server.url}/ops") as visit:
        page = visit.page
        give_key(page)
        expect(page.locator("#chart-exits .legend")).to_contain_text("100%", timeout=20_000)
        page.locator("#charts").focus()
        page.keyboard.press("ArrowLeft")
        expect(page.locator(".timeline .cursor")).to_be_visible()
