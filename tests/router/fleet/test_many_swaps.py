"""A thousand changes of model leave nothing behind: not in the router, not in a shard."""

import asyncio
import tracemalloc
from collections.abc import Callable

import msgspec
import torch

from router.fleet.balancer import Balancer
from router.fleet.engine import Engine
from router.fleet.live_requests import RequestRegistry
from router.fleet.swap import SwapOptions
from router.observers.recorder import Recorder
from router.settings.config import Config
from router.simulation.shards import VirtualLauncher
from router.simulation.virtual import VirtualLoop
from shard.messages import Commit, Committed, Prepare, Prepared, ShardConfig, Step
from shard.models.weight_cache import WeightCache, WeightReader
from shard.ops.plain import PlainOps
from shard.served_models import ServedModels
from shard.sim.sim_runner import SimLoader
from telemetry.store import Store
from tests.router.fakes import make_served_model, make_target

NUM_SWAPS = 1000
WARM = 300
MAX_GROWTH_BYTES = 16 * 1024  # a hundredth of a small object for each change


def assert_flat(change: Callable[[int], None]) -> None:
    """Memory after all changes is what it was after the first few."""
    tracemalloc.start()
    try:
        for number in range(1, WARM):
            change(number)
        before, _ = tracemalloc.get_traced_memory()
        for number in range(WARM, NUM_SWAPS):
            change(number)
        after, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert after - before < MAX_GROWTH_BYTES


def test_a_shard_remembers_neither_models_nor_what_was_discarded() -> None:
    config = ShardConfig("m", "sim")
    shard = ServedModels(config, SimLoader())

    def change(number: int) -> None:
        target = msgspec.structs.replace(config, num_layers=5 + number % 2)
        shard.discard(2 * number)
        assert isinstance(shard.prepare(Prepare(2 * number + 1, target)), Prepared)
        assert isinstance(shard.commit(Commit(2 * number + 1)), Committed)
        shard.run(Step(number, []))

    assert_flat(change)


def test_a_shard_that_is_given_what_it_has_remembers_no_old_names() -> None:
    config = ShardConfig("m", "sim")
    shard = ServedModels(config, SimLoader())

    def change(number: int) -> None:
        assert isinstance(shard.prepare(Prepare(number, config)), Prepared)
        committed = shard.commit(Commit(number))
        assert isinstance(committed, Committed)
        assert committed.joined is not None

    assert_flat(change)


def test_an_engine_remembers_what_its_shard_may_still_answer() -> None:
    balancer = Balancer(RequestRegistry())
    targets = [make_target(kv_cache_bytes=2**28, num_layers=depth) for depth in (5, 6)]

    async def start() -> tuple[Engine, asyncio.Task[None]]:
        engine = Engine(0, targets[0], VirtualLauncher(Config(), 0), balancer)
        life = asyncio.create_task(engine.run())
        await balancer.serving.wait()
        return engine, life

    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        engine, _life = runner.run(start())
        assert_flat(lambda number: runner.run(engine.swap(targets[number % 2], SwapOptions())))
        assert engine.served_model is not None
        assert engine.served_model.epoch == NUM_SWAPS - 1


def test_the_recorder_remembers_the_latest_models() -> None:
    recorder = Recorder(Store(None, "poems", "one"))
    assert_flat(lambda number: recorder.on_shard_ready(0, make_served_model(number)))


def test_weights_that_are_gone_leave_no_sizes() -> None:
    weight_cache = WeightCache()

    def change(number: int) -> None:
        reader = WeightReader(PlainOps(16), torch.empty(0), weight_cache)
        sizes: dict[str, int] = {}
        for name in ("a", "b"):
            reader.once((number, name), lambda: torch.zeros(4), sizes)

    assert_flat(change)
