"""The prefix cache through the whole server: what clients are told of it, and that no answer changes."""

import asyncio
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tests.router.exit_client import LEAVING, Client, session
from tests.running import Server

PROMPT = "The quick brown dog thinks about the weather and about its dinner, and then it thinks again"


@pytest.fixture(scope="module")
def start(serve: Callable[..., Server], tiny_model: Callable[[str], Path]) -> Callable[..., Server]:
    def start(**settings: object) -> Server:
        usual: dict[str, object] = {
            "model_id": tiny_model("llama"),
            "dtype": "float32",
            "device": "cpu",
            "num_threads": 1,
        }
        usual |= {"kv_cache_bytes": "16MiB", "redis_url": "redis://127.0.0.1:1"}
        return serve(**(usual | settings))

    return start


@pytest.fixture(scope="module")
def caching(start: Callable[..., Server]) -> Server:
    return start()


@pytest.fixture(scope="module")
def computing(start: Callable[..., Server]) -> Server:
    return start(no_prefix_cache=True)


def cached(answer: dict[str, dict[str, int]]) -> int:
    return answer["details"]["cached_tokens"]


async def test_the_second_time_most_is_found_and_nothing_changes(caching: Server, computing: Server) -> None:
    async with session() as http:
        client, other = Client(http, caching), Client(http, computing)
        texts = []
        for longer in ("", "", ", and eats"):
            asked = {"details": True, "max_new_tokens": 30, "ignore_eos": True, "cache_salt": "one"}
            answer = await client.answer(PROMPT + longer, **asked)
            expected = await other.answer(PROMPT + longer, **asked)
            texts.append((answer["generated_text"], expected["generated_text"], cached(answer)))
            assert cached(expected) == 0
        assert all(text == computed for text, computed, _ in texts)
        assert texts[0][2] == 0
        assert texts[1][2] >= 16
        assert texts[2][2] >= 16
        assert texts[1][2] % 16 == 0
        hits = await client.metric("helios_prefix_cache_hit_tokens_total")
        assert sum(hits.values()) >= texts[1][2] + texts[2][2]
        assert sum((await other.metric("helios_prefix_cache_queried_tokens_total")).values()) == 0


async def test_salts_are_apart_and_scored_prompts_are_computed(caching: Server) -> None:
    async with session() as http:
        client = Client(http, caching)
        asked = {"details": True, "max_new_tokens": 4}
        for salt in ("a", "b"):
            assert cached(await client.answer(PROMPT, cache_salt=salt, **asked)) == 0
        assert cached(await client.answer(PROMPT, cache_salt="a", **asked)) >= 16
        scored = await client.answer(PROMPT, cache_salt="a", decoder_input_details=True, **asked)
        assert cached(scored) == 0
        assert len(scored["details"]["prefill"]) > 16
        assert await client.header("x-cached-tokens", PROMPT, cache_salt="b", **asked) not in (None, "0")
        status, refused = await client.post(PROMPT, cache_salt="x" * 257)
        assert status == 422
        assert "cache_salt" in refused["error"]


async def test_openais_usage_tells_of_it(caching: Server) -> None:
    async with session() as http:
        body = {"prompt": PROMPT, "max_tokens": 2, "cache_salt": "usage", "temperature": 0}
        found = []
        for _ in range(2):
            async with http.post(f"{caching.url}/v1/completions", json=body) as got:
                found.append((await got.json())["usage"]["prompt_tokens_details"]["cached_tokens"])
        assert found[0] == 0 < found[1]


async def test_a_cleared_cache_finds_nothing_and_state_tells_of_it(caching: Server) -> None:
    async with session() as http:
        client, asked = Client(http, caching), {"details": True, "max_new_tokens": 2, "cache_salt": "clear"}
        found = [cached(await client.answer(PROMPT, **asked)) for _ in range(2)]
        before = (await client.state())["shards"][0]["cache"]
        async with http.post(f"{caching.url}/ops/cache/clear", json={"shard": 0}) as got:
            cleared = (await got.json())["tokens"]
        found.append(cached(await client.answer(PROMPT, **asked)))
        after = (await client.state())["shards"][0]["cache"]
    assert found[0] == found[2] == 0 < found[1]
    assert cleared == 16 * before["known_blocks"] > 0
    assert after["cleared_blocks"] - before["cleared_blocks"] == before["known_blocks"]
    assert after["queried_tokens"] > before["queried_tokens"] > before["hit_tokens"] > 0
    assert before["mean_reuse_gap_ms"] > 0


async def test_another_key_is_another_tenant(caching: Server) -> None:
    """A server that asks for no key takes the caller's word for who it is."""
    found = []
    async with session() as http:
        for key in ("ann", "bob", "ann", "bob"):
            body = {"inputs": PROMPT, "parameters": {"max_new_tokens": 2}}
            headers = {"authorization": f"Bearer {key}"}
            async with http.post(f"{caching.url}/generate", json=body, headers=headers) as got:
                found.append(int(got.headers["x-cached-tokens"]))
    assert found[:2] == [0, 0]
    assert min(found[2:]) >= 16


async def test_a_change_says_what_it_keeps_and_drops(start: Callable[..., Server]) -> None:
    """Fewer layers find what more have computed; more begin anew."""
    server = start(**LEAVING, exit_threshold=1.0)
    async with session() as http:
        client, asked = Client(http, server), {"details": True, "max_new_tokens": 2}
        found, costs = [cached(await client.answer(PROMPT, **asked))], []
        name = (await client.state())["candidates"][0]["candidate"]
        for depth in (2, 4):
            decision = await change(http, server, name, depth)
            costs.append((decision["cost"]["kept_cache_tokens"], decision["cost"]["dropped_cache_tokens"]))
            found.append(cached(await client.answer(PROMPT, **asked)))
    assert found[0] == found[2] == 0 < found[1]
    assert costs[0][1] == costs[1][0] == 0
    assert min(costs[0][0], costs[1][1]) >= found[1]


SYSTEM = "The quick brown dog and the lazy fox have thought about the weather for long, and so have we. "
WORDS = "abcdefgh"


async def talk(client: Client, number: int, num_turns: int, meanwhile: asyncio.Event) -> list[str]:
    """A chat of one of two tenants; what is answered at each turn. Half begin with the same words."""
    said = SYSTEM if number % 4 < 2 else f"Chat {number} is about the dinner of the dog. "
    answers = []
    for turn in range(num_turns):
        said += f"Tell {'us ' * (number % 3)}more. "
        tokens = 24 + 6 * ((number + turn) % 4)
        asked = {"max_new_tokens": tokens, "ignore_eos": True, "cache_salt": f"tenant {number % 2}"}
        text = (await client.answer(said, **asked))["generated_text"]
        answers.append(text)
        said += text
        if turn == 1:
            meanwhile.set()
    return answers


async def test_answers_survive_little_memory_and_a_dead_shard(
    start: Callable[..., Server], computing: Server
) -> None:
    """Many chats at once, on two shards with few blocks, one of which is killed: every word is as without."""
    few = {"num_shards": 2, "kv_cache_bytes": "1MiB", "max_batch_size": 12, "max_total_tokens": 640}
    few |= {"max_queued_tokens": 100_000}
    server = start(**few)
    async with session() as http:
        client, plain, begun = Client(http, server), Client(http, computing), asyncio.Event()
        chats = [asyncio.ensure_future(talk(client, number, 3, begun)) for number in range(12)]
        await begun.wait()
        shard = next(child for child in server.children() if "shard" in " ".join(child.cmdline()))
        os.kill(shard.pid, signal.SIGKILL)
        answers = await asyncio.gather(*chats)
        for number in range(12):
            assert answers[number] == await talk(plain, number, 3, begun), number
        hits = await client.metric("helios_prefix_cache_hit_tokens_total")
        assert sum(hits.values()) > 500
        assert sum((await client.metric("helios_shard_deaths_total")).values()) == 1


async def test_answers_survive_changes_of_depth_under_load(start: Callable[..., Server]) -> None:
    """Each answer is what its model says with nothing found, whatever blocks changes have kept."""
    server = start(**LEAVING, exit_threshold=1.0)
    async with session() as http:
        client = Client(http, server)
        name = (await client.state())["candidates"][0]["candidate"]
        seen: dict[int, set[str]] = {2: set(), 4: set()}
        num_found = 0

        async def ask(word: str, **more: Any) -> dict[str, Any]:
            return await client.answer(SYSTEM + word, details=True, max_new_tokens=8, **more)

        for depth in (4, 2, 4, 2):
            changing = asyncio.ensure_future(change(http, server, name, depth))
            is_last = False
            while not is_last:
                is_last = changing.done()
                for word, answer in zip(WORDS, await asyncio.gather(*map(ask, WORDS)), strict=True):
                    num_found += cached(answer)
                    segments = answer["details"]["segments"]
                    if len(segments) == 1:
                        seen[segments[0]["depth"]].add(word + answer["generated_text"])
            await changing
        for depth in (2, 4):
            await change(http, server, name, depth)
            alone = [await ask(word, cache_salt=f"{word} {depth}") for word in WORDS]
            assert not any(map(cached, alone))
            texts = (answer["generated_text"] for answer in alone)
            assert seen[depth] == {word + text for word, text in zip(WORDS, texts, strict=True)}
    assert num_found > 1000


async def change(http: aiohttp.ClientSession, server: Server, name: str, depth: int) -> dict[str, Any]:
    """Change the depth; the decision."""
    async with http.post(f"{server.url}/ops/swap", json={"candidate": name, "depth": depth}) as got:
        id = (await got.json())["decision_id"]
    while True:
        async with http.get(f"{server.url}/ops/decisions/{id}") as got:
            decision: dict[str, Any] = await got.json()
        if decision["outcome"] is not None:
            assert decision["outcome"] == "committed", decision
            return decision
