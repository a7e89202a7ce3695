"""A dispatcher over real shard processes with a simulated model, as tests use it."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import msgspec
import psutil

from router.catalog.served_model import Target
from router.fleet.dispatcher import Dispatcher, ShardState
from router.fleet.launcher import Launcher, launcher_of
from router.scheduling.observer import Observer
from router.scheduling.request import Finished, Request, Spec
from router.scheduling.step_tokens import StepTokens
from router.settings.config import Config
from shard.messages import Score, StepOutput
from shard.sim.sim_runner import CostModel
from tests.router.fakes import TOKENIZER

FAST = CostModel(step_ms=2.0, token_ms=0.0, sequence_ms=0.0, context_token_ms=0.0)
TIMEOUT_S = 30.0


class Record(Observer):
    """An observer that records events."""

    def __init__(self) -> None:
        self.events: list[tuple[str, int]] = []  # (what, request id; of tokens the shard)
        self.steps: list[tuple[int, StepOutput]] = []  # (shard, output)
        self.swaps: list[tuple[int, str]] = []  # (shard, outcome)
        self.deaths: list[tuple[int, str]] = []
        self.scored: list[tuple[Request, list[Score]]] = []

    def on_submitted(self, request: Request) -> None:
        self.events.append(("submitted", request.id))

    def on_started(self, request: Request) -> None:
        self.events.append(("started", request.id))

    def on_tokens(self, shard: int, tokens: StepTokens) -> None:
        self.events.append(("tokens", shard))

    def on_finished(self, request: Request) -> None:
        self.events.append(("finished", request.id))

    def on_scored(self, request: Request, scores: list[Score]) -> None:
        self.scored.append((request, scores))

    def on_preempted(self, request: Request) -> None:
        self.events.append(("preempted", request.id))

    def on_step(self, shard: int, output: StepOutput) -> None:
        self.steps.append((shard, output))

    def on_swap(self, shard: int, outcome: str, phases_ms: dict[str, float]) -> None:
        self.swaps.append((shard, outcome))

    def on_shard_death(self, shard: int, reason: str) -> None:
        self.deaths.append((shard, reason))


class Sim:
    """A dispatcher with its record."""

    def __init__(self, dispatcher: Dispatcher, record: Record):
        self.dispatcher = dispatcher
        self.record = record

    def submit(self, *specs: Spec) -> list[Request]:
        return [self.dispatcher.submit(spec) for spec in specs]

    def shards(self) -> list[ShardState]:
        return self.dispatcher.state().shards

    async def all_serve(self) -> None:
        await until(lambda: all(shard.state == "serving" for shard in self.shards()))


@contextlib.asynccontextmanager
async def simulated(
    folder: Path,
    costs: CostModel = FAST,
    launch: Callable[[Config, int], Launcher] = launcher_of,
    **settings: Any,
) -> AsyncIterator[Sim]:
    """Started on entry, stopped without a drain at the end."""
    path = folder / "costs.json"
    path.write_bytes(msgspec.json.encode(costs))
    config = Config(**{"device": "sim", "cost_model": str(path), "score_rate": 0.0, **settings})
    target = Target("sim", config.shard_config(folder, 0), TOKENIZER)
    dispatcher, record = Dispatcher(config, target, launch=launch), Record()
    dispatcher.add_observer(record)
    try:
        async with asyncio.timeout(TIMEOUT_S):
            await dispatcher.start()
            sim = Sim(dispatcher, record)
            await sim.all_serve()
            yield sim
    finally:
        await dispatcher.stop(drain=False)


async def until(is_true: Callable[[], bool]) -> None:
    """Wait for what comes by itself."""
    async with asyncio.timeout(TIMEOUT_S):
        while not is_true():  # noqa: ASYNC110 (what is waited for has no event)
            await asyncio.sleep(0.002)


async def text_of(request: Request) -> str:
    """Read a stream to its end. Raises what it ends with, if it is an error."""
    pieces: list[str] = []
    while True:
        for event in await request.take():
            if isinstance(event, Finished):
                assert "".join(pieces) == event.text
                return event.text
            pieces.append(event.text)


async def outcomes(requests: list[Request]) -> list[str | BaseException]:
    return await asyncio.gather(*map(text_of, requests), return_exceptions=True)


def shard_processes() -> list[psutil.Process]:
    """Shard processes of this test process, in order of their start."""
    children = psutil.Process().children()
    shards = [child for child in children if child.is_running() and "--fd" in child.cmdline()]
    return sorted(shards, key=lambda child: child.create_time())
