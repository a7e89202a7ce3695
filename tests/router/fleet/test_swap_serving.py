"""Changes of model through the whole server, with real weights and simulated ones: commands, faults, ends."""

import asyncio
import json
import os
import shutil
import signal
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import jsonschema_rs
import psutil
import pytest
from aiohttp import ClientSession

from tests.running import Server
from tests.shard.exit_files import write_exits

NUM_STREAMS = 32
PATIENCE_S = 60.0
PROMPTS = [f"Once upon a time there were {number} models" for number in range(NUM_STREAMS)]
FEW = PROMPTS[:8]
REPOSITORY = """
[floor]
agreement = 0.0
[loop]
enabled = false
"""
COSTS = {"step_ms": 15, "token_ms": 0, "vocab_size": 345, "max_total_tokens": 256}


Answers = asyncio.Future[list[dict[str, Any]]]


class Caller:
    """A client that is an operator as well."""

    def __init__(self, session: ClientSession, server: Server):
        self.session = session
        self.url = server.url
        self.num_begun = 0

    async def open(self, num_tokens: int, prompts: list[str] = PROMPTS, **parameters: Any) -> Answers:
        """Streams that have all begun; what they end with, once they do."""
        wanted = self.num_begun + len(prompts)
        asked = {"max_new_tokens": num_tokens, "details": True} | (parameters or {"ignore_eos": True})
        streams = asyncio.gather(*(self._stream(prompt, asked) for prompt in prompts))
        async with asyncio.timeout(PATIENCE_S):
            while self.num_begun < wanted:  # noqa: ASYNC110 (what is waited for has no event)
                await asyncio.sleep(0.005)
        return streams

    async def swap(self, candidate: str, depth: int, **more: Any) -> dict[str, Any]:
        return await self.outcome(await self.begin_swap(candidate, depth, **more))

    async def swap_under_load(
        self, candidate: str, depth: int, num_tokens: int, grammar: Any = None, **more: Any
    ) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        """The decision, and the answers of streams that run all the while, however long that is."""
        parameters = {} if grammar is None else {"grammar": grammar}
        waves = [await self.open(num_tokens, **parameters)]
        deciding: asyncio.Future[Any] = asyncio.ensure_future(self.swap(candidate, depth, **more))
        while not deciding.done():
            if waves[-1].done():
                waves.append(await self.open(num_tokens, **parameters))
            await asyncio.wait({deciding, waves[-1]}, return_when=asyncio.FIRST_COMPLETED)
        return await deciding, [answer for wave in waves for answer in await wave]

    async def begin_swap(self, candidate: str, depth: int, **more: Any) -> str:
        asked = {"candidate": candidate, "depth": depth} | more
        async with self.session.post(self.url + "/ops/swap", json=asked) as answer:
            assert answer.status == 202, await answer.text()
            return (await answer.json())["decision_id"]

    async def outcome(self, id: str) -> dict[str, Any]:
        async with asyncio.timeout(PATIENCE_S):
            while True:
                async with self.session.get(f"{self.url}/ops/decisions/{id}") as answer:
                    decision = await answer.json()
                if decision["outcome"]:
                    return decision
                await asyncio.sleep(0.02)

    async def shard(self) -> dict[str, Any]:
        async with self.session.get(self.url + "/ops/state") as answer:
            return (await answer.json())["shards"][0]

    async def until_shard(self, **wanted: Any) -> None:
        async with asyncio.timeout(PATIENCE_S):
            while not (await self.shard()).items() >= wanted.items():  # noqa: ASYNC110 (likewise)
                await asyncio.sleep(0.01)

    async def _stream(self, prompt: str, parameters: dict[str, Any]) -> dict[str, Any]:
        asked = {"inputs": prompt, "parameters": parameters}
        async with self.session.post(self.url + "/generate_stream", json=asked) as answer:
            assert answer.status == 200
            self.num_begun += 1
            events = [json.loads(line[5:]) async for line in answer.content if line.startswith(b"data:")]
        assert [event["index"] for event in events] == list(range(1, len(events) + 1)), events[-1]
        # with the coarse vocabulary, a text may be as long as that model allows, in its tokens
        if "ignore_eos" in parameters and authors(events[-1])[-1][0] != "coarse":
            assert len(events) == parameters["max_new_tokens"], events[-1]
        return events[-1]


@pytest.fixture
async def session() -> AsyncIterator[ClientSession]:
    async with ClientSession() as session:
        yield session


@pytest.fixture(scope="module")
def real(
    serve: Callable[..., Server],
    tiny_model: Callable[[str], Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Server]:
    """Real models, one of them at three depths and one with a tokenizer of its own; a checkpoint cut off."""
    folder = tmp_path_factory.mktemp("repository")
    write_exits(folder / "exits", tiny_model("llama"), [1, 2], "norm")
    shutil.copytree(tiny_model("opt"), folder / "broken")
    os.truncate(folder / "broken" / "model.safetensors", 2000)
    shutil.copytree(tiny_model("qwen3"), folder / "coarse")
    _forget_merges(folder / "coarse" / "tokenizer.json")
    file = folder / "repository.toml"
    file.write_text(
        REPOSITORY
        + candidate("llama", tiny_model("llama"), f'exits = "{folder}/exits"', "depths = [1, 2]")
        + candidate("qwen", tiny_model("qwen3"))
        + candidate("coarse", folder / "coarse")
        + candidate("broken", folder / "broken")
    )
    with serve(
        repository=file, device="cpu", dtype="float32", kv_cache_bytes="32MiB", num_threads=1
    ) as server:
        yield server


@pytest.fixture
def simulated(
    serve: Callable[..., Server], tiny_model: Callable[[str], Path], tmp_path: Path
) -> Callable[[int], Server]:
    """`simulated(load_ms)`: two models without weights, the second of which takes so long to load."""

    def start(load_ms: int) -> Server:
        (tmp_path / "fast.json").write_text(json.dumps(COSTS))
        (tmp_path / "slow.json").write_text(json.dumps(COSTS | {"load_ms": load_ms}))
        file = tmp_path / "repository.toml"
        first = candidate("llama", tiny_model("llama"), f'cost_model = "{tmp_path}/fast.json"')
        second = candidate("qwen", tiny_model("qwen3"), f'cost_model = "{tmp_path}/slow.json"')
        file.write_text(REPOSITORY + first + second)
        return serve(repository=file, device="sim")

    return start


def candidate(name: str, model: Path, *lines: str) -> str:
    return "\n".join(["[[candidate]]", f'name = "{name}"', f'model = "{model}"', *lines, ""])


def texts(answers: list[dict[str, Any]]) -> list[str]:
    return [answer["generated_text"] for answer in answers]


def authors(answer: dict[str, Any]) -> list[tuple[str, int]]:
    return [(segment["model"], segment["depth"]) for segment in answer["details"]["segments"]]


async def test_what_is_said_under_swaps_is_what_each_model_says_alone(
    real: Server, session: ClientSession
) -> None:
    goals = [("llama", 1), ("qwen", 4), ("llama", 2), ("llama", 4)]
    caller = Caller(session, real)
    waves = [await caller.open(60, FEW)]
    for goal in goals:
        decision = await caller.swap(*goal)
        assert decision["outcome"] == "committed", decision
        waves.append(await caller.open(60, FEW))
    answered = [await wave for wave in waves]
    alone = {}
    for goal in goals:
        await caller.swap(*goal)
        alone[goal] = texts(await (await caller.open(60, FEW)))
    for answers, goal in zip(answered, [goals[-1], *goals], strict=True):
        assert {tuple(authors(answer)) for answer in answers} == {(goal,)}
        assert texts(answers) == alone[goal]


async def test_those_that_migrate_lose_nothing_and_say_so(real: Server, session: ClientSession) -> None:
    caller = Caller(session, real)
    decision, answers = await caller.swap_under_load("qwen", 4, 150, inflight="migrate")
    assert decision["cost"]["migrated_requests"] > 0
    moved = [answer for answer in answers if len(authors(answer)) > 1]
    assert {tuple(authors(answer)) for answer in moved} == {(("llama", 4), ("qwen", 4))}
    await caller.swap("llama", 4)


async def test_a_model_with_another_tokenizer_goes_on_from_the_text(
    real: Server, session: ClientSession
) -> None:
    caller = Caller(session, real)
    moved: list[dict[str, Any]] = []
    while not moved:  # until the change finds somebody in mid-answer
        # not too long: the coarse vocabulary has many more tokens for it, and they have to fit the model
        decision, answers = await caller.swap_under_load("coarse", 4, 100, inflight="migrate")
        assert decision["outcome"] == "committed"
        moved = [answer for answer in answers if len(authors(answer)) > 1]
        if not moved:
            await caller.swap("llama", 4)
    assert {tuple(authors(answer)) for answer in moved} == {(("llama", 4), ("coarse", 4))}
    lengths = {answer["details"]["input_length"] for answer in moved}
    alone = await (await caller.open(5))
    assert {answer["details"]["input_length"] for answer in alone} == lengths
    await caller.swap("llama", 4)
    shorter = {answer["details"]["input_length"] for answer in await (await caller.open(5))}
    assert max(shorter) < min(lengths)


@pytest.mark.parametrize("goal", ["qwen", "coarse"])
async def test_what_a_schema_asks_for_holds_across_a_change_of_model(
    real: Server, session: ClientSession, goal: str
) -> None:
    """Also where the model that takes over has another tokenizer, in the middle of a word or number."""
    caller = Caller(session, real)
    item = {"enum": ["a word of the first kind", "a word of the other kind", 123456789]}
    schema = {"type": "array", "items": item, "minItems": 5, "maxItems": 7}
    moved: list[dict[str, Any]] = []
    while not moved:  # until the change finds somebody in mid-answer
        await caller.swap("llama", 4)
        decision, answers = await caller.swap_under_load(
            goal, 4, 180, {"type": "json", "value": schema}, inflight="migrate"
        )
        assert decision["outcome"] == "committed"
        for answer in answers:
            if (
                answer["details"]["finish_reason"] == "length"
            ):  # a coarse vocabulary has many more tokens for it
                assert authors(answer)[-1] == ("coarse", 4)
                assert begins_right(answer["generated_text"], item["enum"])
            else:
                jsonschema_rs.validate(schema, json.loads(answer["generated_text"]))
        moved = [answer for answer in answers if len(authors(answer)) > 1]
    assert {tuple(authors(answer)) for answer in moved} == {(("llama", 4), (goal, 4))}
    await caller.swap("llama", 4)


def begins_right(text: str, items: list[Any]) -> bool:
    """It is the beginning of a list of these."""
    *whole, last = text.removeprefix("[").split(", ")
    said = [json.dumps(item) for item in items]
    return all(item in said for item in whole) and any(item.startswith(last) for item in said)


async def test_a_bad_checkpoint_leaves_the_old_model_serving_and_is_in_the_diary(
    real: Server, session: ClientSession
) -> None:
    caller = Caller(session, real)
    streams = await caller.open(60)
    decision = await caller.swap("broken", 4)
    assert decision["outcome"] == "rolled_back"
    assert decision["error"]
    assert {tuple(authors(answer)) for answer in await streams} == {(("llama", 4),)}
    assert (await caller.shard())["model"] == "llama"


@pytest.mark.parametrize("moment", ["prepare", "after"])
async def test_a_shard_killed_around_a_swap_loses_no_stream(
    simulated: Callable[[int], Server], session: ClientSession, moment: str
) -> None:
    with simulated(500) as server:
        caller = Caller(session, server)
        streams = await caller.open(120)
        id = await caller.begin_swap("qwen", 30)
        if moment == "prepare":
            await caller.until_shard(state="swapping")
        else:
            await caller.outcome(id)
        _shard_of(server).kill()
        decision = await caller.outcome(id)
        assert decision["outcome"] == ("rolled_back" if moment == "prepare" else "committed")
        last = {authors(answer)[-1][0] for answer in await streams}
        assert last == {"llama" if moment == "prepare" else "qwen"}


async def test_a_server_told_to_end_in_mid_swap_finishes_its_streams(
    simulated: Callable[[int], Server], session: ClientSession
) -> None:
    server = simulated(60_000)
    caller = Caller(session, server)
    streams = await caller.open(60)
    await caller.begin_swap("qwen", 30)
    await caller.until_shard(state="swapping")
    server.process.send_signal(signal.SIGTERM)
    assert {tuple(authors(answer)) for answer in await streams} == {(("llama", 30),)}
    assert await asyncio.to_thread(server.process.wait, 40) == 0
    assert "The server is shutting down." in server.log


def _forget_merges(tokenizer: Path) -> None:
    """The same ids, but a text becomes more and shorter tokens."""
    content = json.loads(tokenizer.read_text(encoding="utf-8"))
    content["model"]["merges"] = content["model"]["merges"][:10]
    tokenizer.write_text(json.dumps(content), encoding="utf-8")


def _shard_of(server: Server) -> psutil.Process:
    return next(child for child in server.children() if "--fd" in child.cmdline())
