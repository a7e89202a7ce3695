"""The page at `/` in a real browser, before real servers."""

import json
import shlex
import shutil
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Locator, Page, Request, expect

from tests.browsing import PHONE, Visit, barriers, scrolls_sideways, visiting
from tests.router.exit_client import LEAVING
from tests.running import Server

Servers = Callable[..., Server]
KEY = "s3cret"
SCRIPT = "<script>document.title = 'taken'</script><img src=x onerror=\"document.title = 'taken'\">"


@pytest.fixture(scope="module")
def leaving(serve: Servers, tiny_model: Callable[[str], Path]) -> Server:
    """A chat model of four layers whose tokens may leave after the first or the second."""
    settings = {"model_id": tiny_model("llama"), "dtype": "float32", "device": "cpu", "num_threads": 1}
    return serve(**settings, **LEAVING, kv_cache_bytes="16MiB", redis_url="redis://127.0.0.1:1")


@pytest.fixture(scope="module")
def guarded(
    serve: Servers, tiny_model: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory
) -> Server:
    """A simulated model without a chat template, slow to answer; it asks for a key."""
    folder = tmp_path_factory.mktemp("guarded")
    shutil.copytree(tiny_model("llama"), folder / "model")
    path = folder / "model" / "tokenizer_config.json"
    config = json.loads(path.read_text())
    del config["chat_template"]
    path.write_text(json.dumps(config))
    (folder / "costs.json").write_text(json.dumps({"step_ms": 20.0, "mean_answer_tokens": 100_000}))
    settings = {"model_id": folder / "model", "device": "sim", "cost_model": folder / "costs.json"}
    return serve(**settings, api_key=KEY, redis_url="redis://127.0.0.1:1")


@pytest.fixture
def visit(browser: Browser, leaving: Server) -> Iterator[Visit]:
    with visiting(browser, leaving.url) as visit:
        expect(visit.page.locator("#legend li").first).to_be_visible()
        yield visit


def ask(page: Page, prompt: str, mode: str = "own", **parameters: object) -> None:
    """Fills the form, sends it, and waits for the end of all answers."""
    page.locator(f"[name=mode][value={mode}]").check(force=True)
    for name, value in parameters.items():
        page.fill(f"[name={name}]", str(value))
    page.fill("#prompt", prompt)
    page.press("#prompt", "Enter")
    expect(page.locator(".turn").last).to_be_visible()
    expect(page.locator("#stop")).to_be_hidden(timeout=30_000)


def answer(server: Server, prompt: str, key: str = "", **fields: Any) -> list[dict[str, Any]]:
    """The tokens that the API gives for a chat."""
    body = {"messages": [{"role": "user", "content": prompt}], "logprobs": True} | fields
    headers = {"content-type": "application/json", "authorization": f"Bearer {key}"}
    call = urllib.request.Request(f"{server.url}/v1/chat/completions", json.dumps(body).encode(), headers)
    with urllib.request.urlopen(call, timeout=30) as response:
        tokens: list[dict[str, Any]] = json.load(response)["choices"][0]["logprobs"]["content"]
    return tokens


def layers(tokens: Locator) -> list[int]:
    return [int(layer) for layer in tokens.evaluate_all("tokens => tokens.map(token => token.dataset.layer)")]


def test_tokens_are_shaded_by_the_layer_after_which_they_left(visit: Visit, leaving: Server) -> None:
    page = visit.page
    asked = {"max_tokens": 24, "temperature": 0, "exit_threshold": 0.02}
    tokens = answer(leaving, "Why?", **asked)
    assert {token["exit_layer"] for token in tokens} > {4}, "some leave early, some do not"
    ask(page, "Why?", **asked)
    shown = page.locator(".token[data-layer]")
    assert layers(shown) == [token["exit_layer"] for token in tokens]
    colours = dict(zip(layers(shown), shown.evaluate_all(COLOURS), strict=True))
    assert len(set(colours.values())) == len(colours), "each layer has a shade of its own"
    mean = sum(layers(shown)) / len(tokens)
    facts = " ".join(page.locator(".facts").inner_text().split())
    assert f"mean layer, of 4 {mean:.3g}" in facts
    assert f"tokens, ended at the token limit {len(tokens)}" in facts
    early = next(at for at, token in enumerate(tokens) if token["confidence"] is not None)
    shown.first.focus()
    for _ in range(early):
        page.keyboard.press("ArrowRight")
    tip = page.locator("#tip")
    expect(tip).to_contain_text(f"left after {tokens[early]['exit_layer']} of 4")
    expect(tip).to_contain_text(f"{tokens[early]['confidence']:.3g}, over the threshold of 0.02")
    expect(tip).to_contain_text(f"{tokens[early]['logprob']:.3f}")
    page.keyboard.press("Escape")
    expect(tip).to_be_hidden()
    assert visit.faults == []


COLOURS = "tokens => tokens.map(token => getComputedStyle(token).backgroundColor)"


def test_side_by_side_marks_where_the_answers_part(visit: Visit, leaving: Server) -> None:
    page, asked = visit.page, {"max_tokens": 16, "temperature": 0.9, "seed": 7}
    own = answer(leaving, "Why?", **asked, exit_threshold=0)
    exact = answer(leaving, "Why?", **asked, exact=True)
    parting = next(at for at in range(16) if own[at]["token"] != exact[at]["token"])
    ask(page, "Why?", "both", **asked, exit_threshold=0)
    assert page.locator(".answer").count() == 2
    for number, tokens in enumerate((own, exact)):
        shown = page.locator(".answer").nth(number).locator(".token")
        assert layers(shown) == [token["exit_layer"] for token in tokens]
        marked = shown.evaluate_all("all => all.findIndex(token => token.classList.contains('parting'))")
        assert marked == parting
    expect(page.locator(".verdict")).to_contain_text(f"part at token {parting + 1}:")
    ask(page, "Why?", "both", exit_threshold=1)
    expect(page.locator(".verdict").last).to_contain_text("The same 16 tokens.")
    assert visit.faults == []


def test_what_is_said_stays_text_and_goes_on_as_a_conversation(visit: Visit) -> None:
    page = visit.page
    bodies: list[Any] = []

    def note(sent: Request) -> None:
        if sent.method == "POST":
            bodies.append(sent.post_data_json)

    page.on("request", note)
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    page.fill("#prompt", "It's")
    page.click("#curl")
    expect(page.locator("#status")).to_have_text("Copied.")
    words = shlex.split(page.evaluate("navigator.clipboard.readText()"))
    assert (words[0], words[2].endswith("/v1/chat/completions")) == ("curl", True)
    assert json.loads(words[-1])["messages"] == [{"role": "user", "content": "It's"}]
    ask(page, SCRIPT, max_tokens=8, system="Be <b>short</b>.")
    ask(page, "And then?")
    assert page.locator(".prompt").first.inner_text() == SCRIPT
    assert page.locator("#turns script, #turns img, #turns b").count() == 0
    assert page.title() == "Helios: Playground"
    said = [message["content"] for message in bodies[1]["messages"]]
    assert said[:2] == ["Be <b>short</b>.", SCRIPT]
    assert said[3:] == ["And then?"]
    assert page.evaluate("Object.values(localStorage).concat(Object.values(sessionStorage))") == []
    page.click("#clear")
    ask(page, "Anew")
    assert len(bodies[2]["messages"]) == 2
    assert visit.faults == []


def test_a_refusal_is_told_in_words_and_its_field_is_shown(visit: Visit) -> None:
    page = visit.page
    ask(page, "Why?", top_p=3)
    expect(page.get_by_role("alert")).to_contain_text("`top_p`")
    field = page.locator("[name=top_p]")
    expect(field).to_be_focused()
    expect(field).to_have_attribute("aria-invalid", "true")
    assert page.input_value("#prompt") == "Why?"
    ask(page, "Why?", top_p="", max_tokens=2)
    assert page.get_by_role("alert").count() == 1
    assert page.locator("[aria-invalid]").count() == 0


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_is_for_everybody_on_a_phone_too(browser: Browser, leaving: Server, scheme: str) -> None:
    with visiting(browser, leaving.url, color_scheme=scheme, **PHONE) as visit:
        page = visit.page
        page.locator("#parameters summary").click()
        ask(page, "Why " * 30, "both", max_tokens=24, temperature=0, exit_threshold=0.02)
        expect(page.locator(".verdict")).to_be_in_viewport()  # the page follows what grows
        page.locator(".token[data-layer]").last.focus()
        assert barriers(page) == []
        assert not scrolls_sideways(page)
        assert visit.faults == []


def test_a_stop_frees_the_request_and_the_key_is_asked_once(browser: Browser, guarded: Server) -> None:
    with visiting(browser, guarded.url) as visit:
        page = visit.page
        page.get_by_role("dialog").get_by_label("The API key").fill(KEY)
        page.keyboard.press("Enter")
        expect(page.locator("[name=kind][value=chat]")).to_be_disabled()
        expect(page.locator("#hint")).to_contain_text("no chat template")
        page.fill("[name=max_tokens]", "4000")
        page.fill("#prompt", "Once upon a time")
        page.press("#prompt", "Enter")
        expect(page.locator(".token[data-layer]").nth(3)).to_be_attached()
        page.click("#stop")
        expect(page.locator(".facts")).to_contain_text("since you stopped it")
        page.reload()
        expect(page.locator("#legend li").first).to_be_visible()
        assert page.get_by_role("dialog").count() == 0
    [request] = get(guarded, "/ops/requests")["requests"]
    assert request["outcome"] == "cancelled"
    assert request["num_generated_tokens"] < 4000
    [shard] = get(guarded, "/ops/state")["shards"]
    assert (shard["running"], shard["num_free_blocks"]) == (0, shard["num_blocks"])


def get(server: Server, path: str) -> Any:
    call = urllib.request.Request(server.url + path, headers={"authorization": f"Bearer {KEY}"})
    with urllib.request.urlopen(call, timeout=10) as response:
        return json.load(response)
