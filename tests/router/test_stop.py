"""Signals to a server at any moment, in any order, to all of its processes: it ends, and nothing of it stays.

A service manager (systemd, a container's runtime) signals every process at once. STOP_TRIALS says how often
each is tried; with the seed of one that went wrong it can be repeated.
"""

import asyncio
import contextlib
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import psutil
import pytest
from aiohttp import ClientSession

from router.__main__ import SAME_SIGNAL_S
from tests.running import ROOT, Server, environment, serving

TRIALS = int(os.environ.get("STOP_TRIALS", "2"))
END_S = 30.0
REPOSITORY = "[floor]\nagreement = 0.0\n[loop]\nenabled = false\n"
STREAM = {"inputs": "Once upon a time", "parameters": {"max_new_tokens": 60, "ignore_eos": True}}
COSTS = {"step_ms": 15, "vocab_size": 345, "max_total_tokens": 256}

Start = Callable[..., Server]


@pytest.fixture
def start(tiny_model: Callable[[str], Path], tmp_path: Path) -> Iterator[Start]:
    """`start(num_shards=8)` begins to serve simulated models and does not wait. The second loads slowly."""
    started: list[Server] = []

    def begin(load_ms: int = 0, **settings: object) -> Server:
        folder = tmp_path / str(len(started))
        folder.mkdir()
        models = []
        for name, costs in [("first", {"load_ms": load_ms}), ("second", {"load_ms": 1500, "commit_ms": 200})]:
            (folder / f"{name}.json").write_text(json.dumps(COSTS | costs))
            files = f'model = "{tiny_model("llama")}"\ncost_model = "{folder}/{name}.json"'
            models.append(f'[[candidate]]\nname = "{name}"\n{files}\n')
        (folder / "models.toml").write_text(REPOSITORY + "".join(models))
        settings = {
            "log_level": "debug",
            "shutdown_timeout_ms": 10_000,
            "repository": folder / "models.toml",
        } | settings
        server = serving(folder, {"device": "sim", **settings})
        started.append(server)
        return server

    yield begin
    for server in started:
        server.kill()


def processes(server: Server) -> list[psutil.Process]:
    """The server's process and all its children."""
    with contextlib.suppress(psutil.NoSuchProcess):
        return [psutil.Process(server.pid), *server.children()]
    return []


def shards(server: Server) -> list[psutil.Process]:
    found = []
    for child in server.children():
        with contextlib.suppress(psutil.NoSuchProcess):
            if "--fd" in child.cmdline():
                found.append(child)
    return found


async def blow(
    chosen: random.Random, server: Server, signals: Sequence[signal.Signals]
) -> set[psutil.Process]:
    """One of the signals to each process, in some order, not quite at once; those that there were."""
    every = processes(server)
    chosen.shuffle(every)
    for process in every:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.send_signal(chosen.choice(signals))
        if chosen.random() < 0.3:
            await asyncio.sleep(chosen.uniform(0, 0.02))
    return set(every)


async def has_ended(server: Server, known: set[psutil.Process]) -> int:
    """The exit code, once everything has ended in time. No shard may have been started meanwhile."""
    try:
        async with asyncio.timeout(END_S):
            while server.process.poll() is None:  # noqa: ASYNC110 (another process has no event to wait for)
                await asyncio.sleep(0.01)
    except TimeoutError:
        raise AssertionError(f"It hangs, with {processes(server)}:\n{server.log}") from None
    _, alive = await asyncio.to_thread(psutil.wait_procs, known, timeout=END_S)
    assert alive == []
    assert "Traceback" not in server.log
    assert not re.search(r"Stopping:.*Shard \d+ is process", server.log, re.DOTALL), server.log
    assert server.process.returncode is not None
    return server.process.returncode


async def all_serve(session: ClientSession, server: Server) -> None:
    async with asyncio.timeout(60):
        while True:
            async with session.get(server.url + "/ops/state") as answer:
                if all(shard["state"] == "serving" for shard in (await answer.json())["shards"]):
                    return
            await asyncio.sleep(0.02)


async def stream(
    session: ClientSession, server: Server, has_begun: asyncio.Event, asked: dict[str, Any] = STREAM
) -> int:
    """Number of tokens that came."""
    async with session.post(server.url + "/generate_stream", json=asked) as answer:
        num_tokens = 0
        async for line in answer.content:
            num_tokens += b'"token":' in line
            if num_tokens:
                has_begun.set()
        return num_tokens


@pytest.fixture
async def session() -> AsyncIterator[ClientSession]:
    async with ClientSession() as session:
        yield session


@pytest.mark.parametrize("num_shards", [1, 2, 8, 24])
async def test_signals_to_all_let_streams_end_and_start_nothing(
    start: Start, session: ClientSession, num_shards: int
) -> None:
    for seed in range(TRIALS if num_shards < 8 else -(-TRIALS // 2)):
        chosen = random.Random(seed)
        server = start(num_shards=num_shards)
        await asyncio.to_thread(server.wait_until_ready)
        await all_serve(session, server)
        begun = [asyncio.Event() for _ in range(chosen.choice([0, num_shards, 2 * num_shards]))]
        streams = [asyncio.create_task(stream(session, server, event)) for event in begun]
        async with asyncio.timeout(30):
            for event in begun:
                await event.wait()
        known = await blow(chosen, server, chosen.choice([[signal.SIGTERM], [signal.SIGINT]]))
        assert await has_ended(server, known) == 0, f"seed {seed}: {server.log}"
        assert await asyncio.gather(*streams) == [60] * len(streams), f"seed {seed}"
        assert server.log.count("is ready") == num_shards


async def test_a_stop_under_load_lets_every_stream_end(start: Start, session: ClientSession) -> None:
    """Those that run, and those that wait for a place."""
    server = start(max_batch_size=16)
    await asyncio.to_thread(server.wait_until_ready)
    asked = {"inputs": "Once", "parameters": {"max_new_tokens": 30, "ignore_eos": True}}
    streams = [asyncio.create_task(stream(session, server, asyncio.Event(), asked)) for _ in range(40)]
    async with asyncio.timeout(30):
        while not await are_waiting(session, server, 24):  # noqa: ASYNC110 (another process)
            await asyncio.sleep(0.01)
    known = set(processes(server))
    server.process.send_signal(signal.SIGTERM)
    assert await has_ended(server, known) == 0
    assert await asyncio.gather(*streams) == [30] * 40


async def are_waiting(session: ClientSession, server: Server, number: int) -> bool:
    async with session.get(server.url + "/ops/state") as answer:
        return bool((await answer.json())["waiting"] == number)


@pytest.mark.parametrize("signals", [[signal.SIGTERM], [signal.SIGINT], [signal.SIGTERM, signal.SIGINT]])
async def test_signals_while_it_starts(start: Start, signals: list[signal.Signals]) -> None:
    for seed in range(TRIALS):
        chosen = random.Random(seed)
        server = start(load_ms=500, num_shards=2)
        await asyncio.sleep(chosen.uniform(0.0, 4.0))
        known = await blow(chosen, server, signals)
        code = await has_ended(server, known)
        assert code in (0, *(-each for each in signals), *(128 + each for each in signals)), f"seed {seed}"


async def test_signals_while_a_model_is_changed(start: Start, session: ClientSession) -> None:
    for seed in range(TRIALS):
        chosen = random.Random(seed)
        server = start(num_shards=2)
        await asyncio.to_thread(server.wait_until_ready)
        await all_serve(session, server)
        has_begun = asyncio.Event()
        running = asyncio.create_task(stream(session, server, has_begun))
        async with asyncio.timeout(30):
            await has_begun.wait()
        goal = {"candidate": "second", "depth": 30}
        async with session.post(server.url + "/ops/swap", json=goal) as answer:
            assert answer.status == 202, await answer.text()
        await asyncio.sleep(chosen.uniform(0.0, 1.0))
        known = await blow(chosen, server, [signal.SIGTERM])
        assert await has_ended(server, known) == 0, f"seed {seed}"
        assert await running == 60


async def test_signals_while_shards_wait_to_be_started_again(start: Start, session: ClientSession) -> None:
    for seed in range(TRIALS):
        chosen = random.Random(seed)
        server = start(num_shards=2)
        await asyncio.to_thread(server.wait_until_ready)
        await all_serve(session, server)
        for _ in range(chosen.choice([1, 2, 3])):  # after the first, there is a pause
            for shard in shards(server):
                shard.kill()
            await asyncio.sleep(chosen.uniform(0.0, 0.6))
        known = await blow(chosen, server, [signal.SIGTERM])
        assert await has_ended(server, known) == 0, f"seed {seed}"


async def test_a_signal_that_is_sent_twice_is_one(start: Start, session: ClientSession) -> None:
    """As make does, which passes on what its whole process group was sent."""
    for pause_s in (0.0, 0.01, 0.1):
        server = start(num_shards=1)
        await asyncio.to_thread(server.wait_until_ready)
        has_begun = asyncio.Event()
        running = asyncio.create_task(stream(session, server, has_begun))
        async with asyncio.timeout(30):
            await has_begun.wait()
        server.process.send_signal(signal.SIGTERM)
        await asyncio.sleep(pause_s)
        server.process.send_signal(signal.SIGTERM)
        assert await asyncio.to_thread(server.process.wait, 60) == 0
        assert await running == 60


async def test_a_second_signal_ends_it_at_once(start: Start, session: ClientSession) -> None:
    for seed in range(TRIALS):
        chosen = random.Random(seed)
        server = start(num_shards=2, shutdown_timeout_ms=600_000)
        await asyncio.to_thread(server.wait_until_ready)
        has_begun = asyncio.Event()
        long = {"inputs": "Hi", "parameters": {"max_new_tokens": 220, "ignore_eos": True}}
        running = asyncio.create_task(stream(session, server, has_begun, long))
        async with asyncio.timeout(30):
            await has_begun.wait()
        known = await blow(chosen, server, [signal.SIGTERM, signal.SIGINT])
        await asyncio.sleep(SAME_SIGNAL_S + 0.2)
        known |= await blow(chosen, server, [signal.SIGTERM, signal.SIGINT])
        assert await has_ended(server, known) == 1
        await asyncio.gather(running, return_exceptions=True)


HANGING = """
import asyncio, os, signal, sys
import router.__main__ as main
from router import app

async def hang(*_):
    os.kill(os.getpid(), signal.SIGTERM)
    while True:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            pass

app.serve = hang
main.STOP_GRACE_S = 0.5
sys.exit(main.main(sys.argv[1:]))
"""


def test_a_stop_that_hangs_ends_all_the_same_and_says_where(tiny_model: Callable[[str], Path]) -> None:
    flags = ["--model-id", str(tiny_model("llama")), "--device", "sim", "--port", "0"]
    command = [sys.executable, "-c", HANGING, *flags, "--shutdown-timeout-ms", "100"]
    began = time.monotonic()
    ended = subprocess.run(
        command, cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=60, check=False
    )
    assert ended.returncode == 1, (ended.stderr, time.monotonic() - began)
    assert "most recent call first" in ended.stderr
