"""The pages for browsers: who gets them, with which headers, and that they load nothing of others."""

import hashlib
import re
from importlib import resources
from pathlib import Path

import pytest

from tests.router.http_fakes import Client, serving

PAGES = Path(str(resources.files("router.api").joinpath("pages")))
HTML = {"accept": "text/html,application/xhtml+xml,*/*;q=0.8"}  # as browsers ask
VENDORED = {  # uPlot 1.6.32, as npm has it
    "uPlot.iife.min.js": "19c8d4c6ad88929a79f4ae49d6f7161566dfd0ba3d15cc495e974f787eb78f1f",
    "uPlot.min.css": "df630c6a8d6f8eeaff264b50f73ce5b114f646ffd9a0bb74f049b0a00135fa04",
    "uPlot.LICENSE": "8f989229699b4fe2f1a0432d0e9edc338a8a911e250e2d1b01ecd770a5f5b1bd",
}


@pytest.mark.parametrize("path", ["/", "/ops"])
async def test_pages_need_no_key_and_load_only_what_is_ours(path: str) -> None:
    async with serving(api_key="s3cret", admin_key="adm1n") as client:
        async with client.session.get(client.url + path, headers=HTML) as response:
            assert (response.status, response.content_type) == (200, "text/html")
            policy = dict(
                part.strip().partition(" ")[::2]
                for part in response.headers["content-security-policy"].split(";")
            )
            assert (policy["default-src"], policy["script-src"], policy["style-src"]) == (
                "'none'",
                "'self'",
                "'self'",
            )
            assert response.headers["x-content-type-options"] == "nosniff"
            assert response.headers["referrer-policy"] == "no-referrer"
            page = await response.text()
        for reference in re.findall(r'(?:src|href)="([^"]+)"', page):
            async with client.session.get(f"{client.url}/{reference}", headers=HTML) as response:
                assert response.status == 200, reference
    assert not re.search(r"<style|style=|<script>|\son\w+=", page)


async def test_clients_that_are_no_browsers_get_health_at_the_root(client: Client) -> None:
    async with client.session.get(client.url + "/") as response:
        assert (response.status, response.headers["vary"], await response.text()) == (200, "Accept", "")


async def test_a_file_that_the_browser_has_is_not_sent_again(client: Client) -> None:
    url = client.url + "/assets/helios.js"
    async with client.session.get(url) as response:
        assert response.content_type == "text/javascript"
        assert response.headers["cache-control"] == "no-cache"
        tag = response.headers["etag"]
    async with client.session.get(url, headers={"if-none-match": tag}) as response:
        assert (response.status, await response.read()) == (304, b"")


@pytest.mark.parametrize("name", ["nothing.js", "uPlot.LICENSE", "..%2fbrowser.py", "__init__.py"])
async def test_nothing_else_is_given_away(client: Client, name: str) -> None:
    status, body = await client.get(f"/assets/{name}")
    assert (status, body["error_type"]) == (404, "not_found")


@pytest.mark.parametrize("name", VENDORED)
def test_what_others_wrote_is_as_they_published_it(name: str) -> None:
    assert hashlib.sha256((PAGES / name).read_bytes()).hexdigest() == VENDORED[name]


@pytest.mark.parametrize("file", sorted(PAGES.glob("*.js")), ids=lambda file: file.name)
def test_text_is_never_made_into_html(file: Path) -> None:
    if file.name not in VENDORED:
        written = file.read_text(encoding="utf-8")
        assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\b", written)
