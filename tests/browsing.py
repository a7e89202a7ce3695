"""Headless Chromium for tests of pages, by Playwright. Without it they are skipped, and .ci/run fails."""

import contextlib
import shutil
from collections.abc import Iterator
from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, ConsoleMessage, Page, sync_playwright

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
PHONE = {"viewport": {"width": 390, "height": 844}}


@contextlib.contextmanager
def running_browser() -> Iterator[Browser]:
    """One browser, for the tests of a module: none of them may be a coroutine, as Playwright runs a loop."""
    if CHROMIUM is None:
        pytest.skip("no chromium or google-chrome is installed")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        yield browser
        browser.close()


class Visit:
    """A page in a profile of its own, and what its console was told: errors, warnings, exceptions."""

    def __init__(self, page: Page):
        self.page = page
        self.faults: list[str] = []
        page.on("console", self._hear)
        page.on("pageerror", lambda error: self.faults.append(str(error)))

    def _hear(self, message: ConsoleMessage) -> None:
        if message.type in ("error", "warning"):
            self.faults.append(message.text)


@contextlib.contextmanager
def visiting(browser: Browser, url: str, **options: Any) -> Iterator[Visit]:
    """Opens `url`; `options` are those of Playwright's contexts."""
    context = browser.new_context(**options)
    try:
        visit = Visit(context.new_page())
        visit.page.goto(url)
        yield visit
    finally:
        context.close()


def barriers(page: Page) -> list[str]:
    """What axe-core finds that is serious or worse, such as text with too little contrast."""
    found = Axe().run(page).response["violations"]
    return [
        f"{violation['id']}: {[node['target'] for node in violation['nodes']]}"
        for violation in found
        if violation["impact"] in ("serious", "critical")
    ]


def scrolls_sideways(page: Page) -> bool:
    return bool(page.evaluate("document.documentElement.scrollWidth > document.documentElement.clientWidth"))
