"""The documentation page in a real browser, where one is: it renders, and its form makes calls."""

import asyncio
import itertools
import re
import shutil
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tests.router.http_fakes import Client, serving

FLAGS = """--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking
    --disable-component-update --disable-sync --remote-debugging-port=0"""


WHEN_LOADED = """new Promise(done =>
    document.readyState === "complete" ? done() : addEventListener("load", done))"""


class Page:
    """A browser's page, driven by its debugging protocol."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse):
        self._socket = socket
        self._numbers = itertools.count(1)
        self.faults: list[Any] = []

    async def call(self, method: str, **parameters: Any) -> Any:
        number = next(self._numbers)
        await self._socket.send_json({"id": number, "method": method, "params": parameters})
        while True:
            message = await self._socket.receive_json()
            level = message.get("params", {}).get("entry", {}).get("level")
            if message.get("method") == "Runtime.exceptionThrown" or level in ("warning", "error"):
                self.faults.append(message["params"])
            if message.get("id") == number:
                return message["result"]

    async def run(self, script: str) -> Any:
        """The value of a script, which may be a promise."""
        answer = await self.call("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")


@pytest.fixture
async def client() -> AsyncIterator[Client]:
    async with serving() as client:
        yield client


@pytest.fixture
async def page(client: Client, tmp_path: Path) -> AsyncIterator[Page]:
    """`/docs`, loaded."""
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("no chromium or google-chrome is installed")
    process = await asyncio.create_subprocess_exec(
        browser, *FLAGS.split(), f"--user-data-dir={tmp_path}", stderr=asyncio.subprocess.PIPE
    )
    try:
        assert process.stderr is not None
        async with asyncio.timeout(30):
            while not (port := re.search(rb"ws://[^:]+:(\d+)/", line := await process.stderr.readline())):
                assert line, "the browser has ended"
        address = f"http://127.0.0.1:{port[1].decode()}/json/new?about:blank"
        async with client.session.put(address) as answer:
            target = (await answer.json())["webSocketDebuggerUrl"]
        async with client.session.ws_connect(target, max_msg_size=0) as socket:
            page = Page(socket)
            for domain in ("Page", "Runtime", "Log"):
                await page.call(f"{domain}.enable")
            await page.call("Page.navigate", url=f"{client.url}/docs")
            await page.run(WHEN_LOADED)
            yield page
    finally:
        process.kill()
        async with asyncio.timeout(20):
            await process.wait()


async def test_the_page_shows_every_route_and_calls_them(page: Page) -> None:
    paths = "Object.values(JSON.parse(document.getElementById('document').textContent).paths)"
    num_operations = await page.run(f"{paths}.flatMap(Object.keys).length")
    assert await page.run("document.querySelectorAll('details.op').length") == num_operations > 30
    await page.run("document.getElementById('post_generate_stream').open = true; new Promise(setTimeout)")
    shown = await page.run("document.getElementById('post_generate_stream').innerText")
    assert "max_new_tokens" in shown
    assert "number > 0, <= 1 or null" in shown
    answer = await page.run("""
        (async () => {
            const route = document.getElementById("post_generate_stream");
            route.querySelector("button").click();
            while (route.querySelector("button").disabled) await new Promise(done => setTimeout(done, 10));
            return route.querySelector("pre").textContent;
        })()""")
    assert answer.startswith("200 OK\n")
    assert '"generated_text":"Hello!"' in answer
    assert page.faults == []
