"""Early exits through the whole server: real processes, a tiny model, and clients that see only HTTP."""

import asyncio
import json
import statistics
import subprocess
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from tests.router.exit_client import LEAVING, PROMPTS, Client, exit_layers, session
from tests.running import ROOT, Server, command, environment
from tests.shard.exit_files import write_exits

SEEDED = {"do_sample": True, "temperature": 0.9, "top_k": 50, "seed": 7}
Servers = Callable[..., Server]


@pytest.fixture(scope="module")
def start(serve: Servers, tiny_model: Callable[[str], Path]) -> Servers:
    """A server in float32, where equal means equal."""

    def start(**settings: object) -> Server:
        usual = {"model_id": tiny_model("llama"), "dtype": "float32", "device": "cpu", "num_threads": 1}
        return serve(**usual, kv_cache_bytes="16MiB", redis_url="redis://127.0.0.1:1", **settings)

    return start


@pytest.fixture(scope="module")
def full_server(start: Servers) -> Server:
    return start(score_rate=1)


@pytest.fixture(scope="module")
def leaving_server(start: Servers) -> Server:
    return start(**LEAVING, score_rate=1)


@pytest.fixture(scope="module")
def drafting_server(start: Servers) -> Server:
    return start(**LEAVING | {"exit_mode": "speculative"}, score_rate=1)


@pytest.fixture
async def full(full_server: Server) -> AsyncIterator[Client]:
    async with session() as http:
        yield Client(http, full_server)


@pytest.fixture
async def leaving(leaving_server: Server) -> AsyncIterator[Client]:
    async with session() as http:
        yield Client(http, leaving_server)


@pytest.fixture
async def drafting(drafting_server: Server) -> AsyncIterator[Client]:
    async with session() as http:
        yield Client(http, drafting_server)


async def splitting_threshold(client: Client) -> float:
    """One that about half of the tokens pass at their first exit."""
    answers = [await client.answer(prompt, exit_threshold=0) for prompt in PROMPTS[:4]]
    tokens = [token for answer in answers for token in answer["details"]["tokens"]]
    return statistics.median(token["confidence"] for token in tokens if token["confidence"] is not None)


async def test_a_threshold_splits_the_tokens_and_everything_tells_where(leaving: Client) -> None:
    threshold = await splitting_threshold(leaving)
    answer = await leaving.answer(PROMPTS[0], exit_threshold=threshold, max_new_tokens=60)
    layers = exit_layers(answer)
    assert len(set(layers)) > 1
    assert set(layers) <= {1, 2, 4}
    assert answer["details"]["mean_exit_layer"] == pytest.approx(sum(layers) / 60)
    header = await leaving.header("x-helios-mean-exit-layer", PROMPTS[0], exit_threshold=threshold)
    assert header == f"{sum(layers[:24]) / 24:.3f}"
    passed = [token for token in answer["details"]["tokens"] if token["exit_layer"] == 1]
    assert all(token["confidence"] >= threshold for token in passed)
    assert (await leaving.state())["shards"][0]["exit_mode"] == "per_row"
    by_layer = await leaving.metric("helios_tokens_total")
    assert {labels.split('"')[1] for labels in by_layer} == {"1", "2", "4"}
    assert sum((await leaving.metric("helios_exit_confident_tokens_total")).values()) > 0
    assert len(await leaving.metric("helios_exit_segment_seconds_total")) == 3


async def test_mixed_requests_each_get_what_they_would_alone(leaving: Client, full: Client) -> None:
    """More than eight at once, so that some wait at an exit; a third of them exact."""
    threshold = await splitting_threshold(leaving)
    kinds: list[dict[str, Any]] = [
        {"exact": True},
        {"exit_threshold": threshold},
        {"exit_threshold": 1, **SEEDED},
        {},
    ]
    asked = [(prompt, kinds[i % 4]) for i, prompt in enumerate(PROMPTS)]
    alone = [(await leaving.answer(prompt, **kind))["generated_text"] for prompt, kind in asked]
    together = await asyncio.gather(*[leaving.answer(prompt, **kind) for prompt, kind in asked])
    assert [answer["generated_text"] for answer in together] == alone
    for (prompt, kind), answer in zip(asked, together, strict=True):
        if kind.get("exact") or kind.get("exit_threshold") == 1:
            options = {name: value for name, value in kind.items() if name in SEEDED}
            assert set(exit_layers(answer)) == {4}
            assert answer["generated_text"] == (await full.answer(prompt, **options))["generated_text"]


@pytest.mark.parametrize("options", [{}, SEEDED], ids=["greedy", "seeded"])
async def test_speculative_answers_are_those_of_full(drafting: Client, full: Client, options: dict) -> None:
    drafted = await asyncio.gather(*[drafting.answer(prompt, **options) for prompt in PROMPTS])
    plain = await asyncio.gather(*[full.answer(prompt, **options) for prompt in PROMPTS])
    assert [answer["generated_text"] for answer in drafted] == [answer["generated_text"] for answer in plain]
    assert sum((await drafting.metric("helios_drafted_tokens_total")).values()) > 0


async def test_full_depth_agrees_with_its_own_answers_and_with_speculative_ones(
    full: Client, drafting: Client
) -> None:
    for client in (full, drafting):
        await client.answer(PROMPTS[0], **SEEDED)
        agreement = await client.has_scored(1)
        assert agreement["overall"]["agreement"] == 1.0
        assert list(agreement["by_exit"]) == ["4"]
        assert set((await client.metric("helios_agreement")).values()) == {1.0}


async def test_full_depth_disagrees_with_tokens_that_left_at_once(leaving: Client) -> None:
    before = (await leaving.state())["agreement"]["sequences"]
    await asyncio.gather(*[leaving.answer(prompt, exit_threshold=0) for prompt in PROMPTS])
    agreement = await leaving.has_scored(before + len(PROMPTS))
    assert agreement["by_exit"]["1"]["agreement"] < 1.0
    assert agreement["by_exit"]["4"]["agreement"] == 1.0
    assert agreement["perplexity"] > 1
    agreeing = await leaving.metric("helios_agreement_agreeing_tokens_total")
    assert sum(agreeing.values()) == agreement["overall"]["agreeing"]
    await leaving.is_empty()


async def test_clients_that_leave_in_mid_flight_leave_no_block_behind(leaving: Client) -> None:
    firsts = [asyncio.Event() for _ in PROMPTS]
    streams = [
        asyncio.create_task(leaving.stream(prompt, first, exit_threshold=i % 2, max_new_tokens=200))
        for i, (prompt, first) in enumerate(zip(PROMPTS, firsts, strict=True))
    ]
    for first in firsts:
        await asyncio.wait_for(first.wait(), 60)
    for stream in streams[::2]:
        stream.cancel()
    texts = await asyncio.gather(*streams, return_exceptions=True)
    assert [isinstance(text, str) for text in texts] == [i % 2 == 1 for i in range(len(PROMPTS))]
    await leaving.is_empty()


async def test_streams_outlive_their_shard_with_the_texts_they_would_have_had(leaving: Client) -> None:
    threshold = await splitting_threshold(leaving)
    options = {"exit_threshold": threshold, "max_new_tokens": 200}
    undisturbed = [await leaving.stream(prompt, **options) for prompt in PROMPTS[:8]]
    firsts = [asyncio.Event() for _ in range(8)]
    streams = [
        asyncio.create_task(leaving.stream(prompt, first, **options))
        for prompt, first in zip(PROMPTS, firsts, strict=False)
    ]
    for first in firsts:
        await asyncio.wait_for(first.wait(), 60)
    [shard] = [child for child in leaving.server.children() if "shard" in child.cmdline()]
    shard.kill()
    assert await asyncio.gather(*streams) == undisturbed
    assert (await leaving.state())["shards"][0]["num_deaths"] == 1
    await leaving.is_empty()


@pytest.mark.parametrize("value", [-0.1, 1.1, "high"])
async def test_a_threshold_out_of_bounds_is_a_422(leaving: Client, value: object) -> None:
    status, answer = await leaving.post(PROMPTS[0], exit_threshold=value)
    assert (status, answer["error_type"]) == (422, "validation")
    assert "exit_threshold" in answer["error"]


async def test_capped_loads_what_it_runs_cannot_be_exact_and_is_judged_by_all_layers(start: Servers) -> None:
    with start(exit_mode="capped", exit_layers="2", score_rate=1) as server:
        async with session() as http:
            client = Client(http, server)
            answer = await client.answer(PROMPTS[0])
            assert set(exit_layers(answer)) == {2}
            status, refused = await client.post(PROMPTS[0], exact=True)
            assert (status, refused["error_type"]) == (422, "validation")
            info = await client.info()
            assert (info["depth"], info["num_layers"], info["supports_exact"]) == (2, 4, False)
            assert sum((await client.metric("helios_exit_breaches_total")).values()) > 0
            agreement = await client.has_scored(1)
            assert list(agreement["by_exit"]) == ["2"]
            assert agreement["overall"]["agreement"] < 1
            await client.is_empty()


async def test_replayed_exits_are_marked_wherever_they_appear(start: Servers, tmp_path: Path) -> None:
    shares = tmp_path / "shares.json"
    shares.write_text(json.dumps({"shares": {"1": 0.5, "2": 0.25}, "source": "made up"}))
    with start(**LEAVING, replay_exits=shares) as server:
        assert "exit-replay: no model's answers" in server.ready_line
        async with session() as http:
            client = Client(http, server)
            answer = await client.answer(PROMPTS[0], max_new_tokens=100)
            assert set(exit_layers(answer)) == {1, 2, 4}
            assert answer["details"]["exit_replay"] is True
            assert await client.header("x-helios-exit-replay", PROMPTS[0]) == "true"
            assert (await client.info())["exit_replay"] is True


def refusal(tmp_path: Path, model: Path, settings: dict[str, object]) -> str:
    """What the server says when it will not start."""
    usual: dict[str, object] = {"model_id": model, "dtype": "float32", "device": "cpu", "port": 0}
    result = subprocess.run(
        command(usual | settings), cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=60
    )
    assert result.returncode == 1, result.stderr
    assert "http://" not in result.stdout
    return result.stderr


def remade(folder: Path, **changes: object) -> Path:
    """An exit folder whose exits.json says something else."""
    file = folder / "exits.json"
    description = json.loads(file.read_text())
    description["exits"][0] |= changes.pop("exit", {})
    file.write_text(json.dumps(description | changes))
    return folder


def without_weights(folder: Path) -> Path:
    (folder / "exits.safetensors").unlink()
    return folder


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (lambda exits: remade(exits, exit={"layer": 4}), "exit layer 4 is out of range: between 1 and 3"),
        (
            lambda exits: remade(exits, exit={"threshold": 1.5}),
            "threshold 1.5 of exit layer 1 is not in [0, 1]",
        ),
        (lambda exits: remade(exits, hidden_size=128), "exits were made for hidden size 128, not 64"),
        (lambda exits: remade(exits, exit={"layer": 2}), "tensor 'exits.2.mlp.norm.weight'"),
        (without_weights, "exit layer 1 has a mlp head, but there is no exits.safetensors"),
        (lambda exits: exits.parent / "absent", "exits.json does not exist"),
    ],
)
def test_exits_that_do_not_fit_are_refused_at_start_in_one_sentence(
    tmp_path: Path, tiny_model: Callable[[str], Path], spoil: Callable[[Path], Path], sentence: str
) -> None:
    model = tiny_model("llama")
    folder = spoil(write_exits(tmp_path / "exits", model, [1], "mlp"))
    message = refusal(tmp_path, model, {"exit_mode": "per_row", "exits": folder})
    last = message.splitlines()[-1]
    assert last.startswith("helios serve: ")
    assert sentence in last
    assert "Traceback" not in message


def test_a_criterion_whose_data_are_not_there_and_a_layer_beyond_the_model_are_refused(
    tmp_path: Path, tiny_model: Callable[[str], Path]
) -> None:
    message = refusal(tmp_path, tiny_model("llama"), LEAVING | {"exit_criterion": "classifier"})
    assert "exit layer 1 has no probe, which criterion 'classifier' asks" in message.splitlines()[-1]
    message = refusal(tmp_path, tiny_model("llama"), LEAVING | {"exit_layers": "1,9"})
    assert "exit layer 9 is out of range: between 1 and 3" in message.splitlines()[-1]
