"""Links to shards on other hosts that break, garble, stall, delay: every text is what it would have been."""

import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from random import Random

import pytest

from tests.router.fakes import expected_answer, make_spec
from tests.router.remote_shards import Link, listening_shard
from tests.router.sim_serving import FAST, Sim, outcomes, simulated, until

SPECS = [make_spec(20, 60, first=1000 * number) for number in range(1, 9)]
TEXTS = ["".join(f"{id} " for id in expected_answer(spec, FAST)) for spec in SPECS]


@contextlib.asynccontextmanager
async def linked(link: Link, folder: Path, secret: Path) -> AsyncIterator[Sim]:
    async with listening_shard(secret) as (port, _), link.to(port) as door:
        address = (f"tcp://127.0.0.1:{door}",)
        patience = {"heartbeat_timeout_ms": 1000, "step_timeout_ms": 3000}
        async with simulated(
            folder, shard_addresses=address, shard_secret_file=str(secret), **patience
        ) as sim:
            yield sim


async def until_they_run(sim: Sim) -> None:
    await until(lambda: all(len(request.outputs) >= 10 for request in sim.dispatcher.requests()))


class Once:
    """Disturbs one piece, and lets the others pass."""

    def __init__(self, becomes: bytes | None):
        self._becomes = becomes
        self.is_done = False

    def __call__(self, data: bytes) -> bytes | None:
        if self.is_done:
            return data
        self.is_done = True
        return self._becomes


@pytest.mark.parametrize("way", ["to_router", "to_shard"])
@pytest.mark.parametrize(
    "becomes", [None, Random(1).randbytes(500), b"\0" * 64], ids=["cut", "noise", "zeros"]
)
async def test_a_link_that_is_disturbed_once(
    tmp_path: Path, secret: Path, way: str, becomes: bytes | None
) -> None:
    link = Link()
    async with linked(link, tmp_path, secret) as sim:
        requests = sim.submit(*SPECS)
        await until_they_run(sim)
        disturb = Once(becomes)
        setattr(link, way, disturb)
        assert await outcomes(requests) == TEXTS
        assert disturb.is_done
        assert link.num_connections > 1
        assert {request.num_shard_deaths for request in requests} == {1}


async def test_a_link_that_stalls(tmp_path: Path, secret: Path) -> None:
    link = Link()
    async with linked(link, tmp_path, secret) as sim:
        requests = sim.submit(*SPECS)
        await until_they_run(sim)
        link.is_stalled = True
        await until(lambda: bool(sim.record.deaths))
        link.is_stalled = False
        assert await outcomes(requests) == TEXTS


async def test_a_link_that_delays_and_splits(tmp_path: Path, secret: Path) -> None:
    link = Link()
    async with linked(link, tmp_path, secret) as sim:
        link.delay_s = 0.02
        assert await outcomes(sim.submit(*SPECS)) == TEXTS
        assert sim.record.deaths == []
