"""`helios bench scale`: decisions and cost per request with many shards and requests whose kind shifts."""

import argparse
import asyncio
import itertools
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import cast

import msgspec

from router.catalog.catalog import Catalog
from router.catalog.repository import Choice
from router.control.loop import ReassessmentLoop
from router.control.swap_controller import SwapController
from router.fleet.dispatcher import Dispatcher
from router.fleet.swap import SwapOptions
from router.observers.recorder import Recorder
from router.scheduling.request import Finished, Request
from router.settings.config import Config
from router.simulation import virtual
from router.simulation.shards import VirtualLauncher
from router.simulation.store import MemoryStore
from router.simulation.world import NUM_LAYERS, ScaleCatalog
from telemetry.audit import Decision

_LOAD = 1.0  # requests per second and shard: a quarter of the whole model's capacity
_MAX_DEPTH = 20


class Asked(msgspec.Struct, frozen=True):
    """The size of the simulation."""

    num_shards: int = 1000
    num_requests: int = 100_000
    num_shifts: int = 3
    num_mixed: int = 0  # requests of both classes, sent last
    seed: int = 0

    @property
    def num_in_all(self) -> int:
        return self.num_requests + self.num_mixed


class Phase(msgspec.Struct):
    """A phase of requests of one class, alone or mixed with another."""

    kind: str
    num_requests: int = 0
    num_right: int = 0  # answered by exits made for the class, at a certified depth
    num_until_right: int | None = None  # requests that arrived before the first of those
    num_below_floor: int = 0  # answered by exits made for another class


class Result(msgspec.Struct, frozen=True, kw_only=True):
    """The result. Times are CPU times of this process, except `virtual_s`."""

    asked: Asked
    cpu_s: float
    virtual_s: float
    us_per_request: float
    us_per_request_by_quarter: list[float]
    num_failed: int
    decisions: list[str]
    phases: list[Phase]


async def measure(asked: Asked, folder: Path) -> Result:
    """Serve all requests in virtual time."""
    config = Config(
        device="sim",
        num_shards=asked.num_shards,
        max_batch_size=16,
        max_batch_prefill_tokens=512,
        max_concurrent_requests=10**9,
        max_queued_tokens=10**9,
        block_size=16,
        kv_cache_bytes=256 * 1024 * 1024,
        score_rate=0.02,
    )
    catalog, store = ScaleCatalog(config, folder), MemoryStore()
    target = catalog.target_of(Choice("full", NUM_LAYERS))
    dispatcher = Dispatcher(config, target, launch=VirtualLauncher)
    controller = SwapController(dispatcher, cast(Catalog, catalog), store.audit)
    loop = ReassessmentLoop(
        catalog.repository,
        catalog.profiles,
        dispatcher,
        controller,
        store,
        SwapOptions(),
        unix_s=store.now_s,
    )
    dispatcher.add_observer(Recorder(store, store.now_s))
    dispatcher.add_observer(loop.observer)
    await dispatcher.start()
    loop.start()
    clients = _Clients(dispatcher, asked)
    try:
        return await clients.run(catalog, store)
    finally:
        await dispatcher.stop(drain=False)
        await loop.stop()


class _Clients:
    """Sends requests, and notes which choice answered them."""

    def __init__(self, dispatcher: Dispatcher, asked: Asked):
        self._dispatcher = dispatcher
        self._asked = asked
        self._phases: dict[tuple[int, str], Phase] = {}
        self._num_failed = 0
        self._readers: set[asyncio.Task[None]] = set()

    async def run(self, catalog: ScaleCatalog, store: MemoryStore) -> Result:
        asked, clock = self._asked, asyncio.get_running_loop()
        began, began_s = time.process_time(), clock.time()
        marks = [began]
        gap_s = 1 / (_LOAD * asked.num_shards)
        requests = catalog.requests(asked.num_requests, asked.num_shifts, asked.num_mixed, asked.seed)
        for index, (stretch, kind, spec) in enumerate(requests):
            phase = self._phases.setdefault((stretch, kind), Phase(kind))
            await asyncio.sleep(max(0.0, began_s + index * gap_s - clock.time()))
            reader = asyncio.create_task(self._read(self._dispatcher.submit(spec), phase))
            self._readers.add(reader)
            reader.add_done_callback(self._readers.discard)
            if 4 * (index + 1) % asked.num_in_all < 4:
                marks.append(time.process_time())
        await asyncio.gather(*self._readers)
        cpu_s = time.process_time() - began
        return Result(
            asked=asked,
            cpu_s=cpu_s,
            virtual_s=clock.time() - began_s,
            us_per_request=1e6 * cpu_s / asked.num_in_all,
            us_per_request_by_quarter=_by_quarter(marks, asked.num_in_all),
            num_failed=self._num_failed,
            decisions=[_told(decision) for decision in reversed(store.audit.latest())],
            phases=list(self._phases.values()),
        )

    async def _read(self, request: Request, phase: Phase) -> None:
        while True:
            for event in await request.take():
                if isinstance(event, Finished):
                    self._note(request, phase)
                    return
                if isinstance(event, Exception):
                    self._num_failed += 1
                    return

    def _note(self, request: Request, phase: Phase) -> None:
        phase.num_requests += 1
        authors = {(segment.model, segment.depth) for segment in request.segments}
        if all(model == phase.kind and depth <= _MAX_DEPTH for model, depth in authors):
            phase.num_right += 1
            if phase.num_until_right is None:
                phase.num_until_right = phase.num_requests
        phase.num_below_floor += any(model != phase.kind and depth <= _MAX_DEPTH for model, depth in authors)


def _told(decision: Decision) -> str:
    named = decision.chosen
    chosen = "several" if "prompts" in named else f"{named.get('candidate')}@{named.get('depth')}"
    at = decision.seen.get("requests", 0)
    return f"{at:>7} {decision.kind:9} {chosen:8} {decision.outcome:11} {decision.why}"


def _by_quarter(marks: list[float], num_requests: int) -> list[float]:
    quarter = num_requests / 4
    return [1e6 * (late - early) / quarter for early, late in itertools.pairwise(marks)]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the simulation; prints the decisions, a line per phase and one line of JSON."""
    parser = argparse.ArgumentParser(prog="helios bench scale", description=__doc__)
    for field in msgspec.structs.fields(Asked):
        parser.add_argument("--" + field.name.replace("_", "-"), type=int, default=field.default)
    asked = Asked(**vars(parser.parse_args(argv)))
    with tempfile.TemporaryDirectory() as folder:
        result = virtual.run(measure(asked, Path(folder)))
    for line in result.decisions:
        print(line)
    for phase in result.phases:
        print(f"{phase.kind}: {phase.num_right} of {phase.num_requests} by exits of its own")
    print(json.dumps(msgspec.to_builtins(result)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
