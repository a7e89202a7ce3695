"""A request's way from shard to shard and model to model, over real shard processes."""

import asyncio
from pathlib import Path

import msgspec

from router.fleet.swap import Inflight, SwapOptions
from router.scheduling.moves import MAX_MOVES, What
from router.scheduling.request import Request
from tests.router.fakes import make_spec
from tests.router.sim_serving import FAST, shard_processes, simulated, text_of, until


def way(request: Request) -> list[What]:
    times = [move.at for move in request.moves]
    assert times == sorted(times)
    return [move.what for move in request.moves]


async def test_a_killed_shard_and_where_its_request_went_on_are_told(tmp_path: Path) -> None:
    async with simulated(tmp_path, num_shards=2) as sim:
        [request] = sim.submit(make_spec(20, 200))
        reading = asyncio.create_task(text_of(request))
        await until(lambda: len(request.outputs) >= 5)
        first = request.shard
        assert first is not None
        shard_processes()[first].kill()
        await reading
        assert way(request) == [What.STARTED, What.SHARD_DIED, What.MOVED]
        started, died, moved = request.moves
        assert (started.shard, died.shard, moved.shard) == (first, first, 1 - first)
        assert 5 <= died.num_generated_tokens == moved.num_generated_tokens < 200


async def test_a_change_of_depth_is_told(tmp_path: Path) -> None:
    async with simulated(tmp_path) as sim:
        [request] = sim.submit(make_spec(20, 200))
        reading = asyncio.create_task(text_of(request))
        await until(lambda: len(request.outputs) >= 5)
        target = sim.dispatcher.targets(0)[0][0]
        shallow = msgspec.structs.replace(
            target, config=msgspec.structs.replace(target.config, num_layers=10)
        )
        await sim.dispatcher.swap({0: shallow}, SwapOptions(Inflight.MIGRATE))
        await reading
        assert way(request) == [What.STARTED, What.MODEL_CHANGED, What.MOVED]
        assert [move.depth for move in request.moves] == [30, 30, 10]


async def test_preemptions_are_told_and_the_latest_are_kept(tmp_path: Path) -> None:
    settings = {"kv_cache_bytes": 640 * 4096, "max_total_tokens": 400, "max_queued_tokens": 10_000}
    costs = msgspec.structs.replace(FAST, step_ms=0.2, kv_bytes_per_token=4096)
    async with simulated(tmp_path, costs, **settings) as sim:
        requests = sim.submit(*[make_spec(100, 200, 1000 * n) for n in range(8)])
        await asyncio.gather(*map(text_of, requests))
        preempted = [request for request in requests if request.num_preemptions]
        assert preempted
        for request in preempted:
            pairs = [What.PREEMPTED, What.RESUMED] * request.num_preemptions
            assert way(request) == [What.STARTED, *pairs][-MAX_MOVES:]
