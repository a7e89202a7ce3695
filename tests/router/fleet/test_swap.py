"""Changes of depth and model over real shard processes, with streams open: nothing lost, nothing mixed."""

import asyncio
import threading
from itertools import cycle
from pathlib import Path
from typing import Any

import msgspec
import psutil
import pytest

from router.catalog.catalog import Catalog
from router.catalog.repository import Repository
from router.catalog.served_model import Target
from router.control.swap_controller import ChangeRequest, SwapController
from router.fleet.launcher import ChildLauncher
from router.fleet.swap import Inflight, SwapError, SwapOptions, SwapRefused, SwapResult
from router.scheduling.request import GenerationFailed, Request, Status
from router.settings.config import Config
from shard.sim.sim_runner import CostModel
from telemetry.audit import AuditLog, Decision, Outcome
from tests.router.fakes import TOKENIZER, FakeTokenizer, expected_answer, make_spec
from tests.router.sim_serving import FAST, Sim, outcomes, shard_processes, simulated, text_of, until

FINISH = SwapOptions(Inflight.FINISH, drain_s=10.0)
MIGRATE = SwapOptions(Inflight.MIGRATE)
ROOM = {"max_concurrent_requests": 500, "max_queued_tokens": 1_000_000}


def specs(count: int, max_new_tokens: int = 100, start: int = 1, **more: Any) -> list[Any]:
    return [make_spec(20, max_new_tokens, 1000 * (start + n), **more) for n in range(count)]


def expected(asked: list[Any], costs: CostModel = FAST) -> list[str]:
    return ["".join(f"{id} " for id in expected_answer(spec, costs)) for spec in asked]


def at_depth(sim: Sim, depth: int | None) -> Target:
    return other(sim, "sim", num_layers=depth)


def other(sim: Sim, name: str, tokenizer: FakeTokenizer = TOKENIZER, **config: Any) -> Target:
    base = sim.dispatcher.targets(0)[0][0].config
    return Target(name, msgspec.structs.replace(base, **config), tokenizer)


def costs_of(folder: Path, name: str, **changes: Any) -> str:
    """A file with another model's costs."""
    path = folder / f"{name}.json"
    path.write_bytes(msgspec.json.encode(msgspec.structs.replace(FAST, **changes)))
    return str(path)


def process_of(sim: Sim, shard: int) -> psutil.Process:
    launcher = sim.dispatcher.engines[shard].launcher
    assert isinstance(launcher, ChildLauncher) and launcher.process is not None
    return psutil.Process(launcher.process.pid)


def authors(request: Request) -> list[tuple[str, int, int]]:
    return [(segment.model, segment.depth, segment.from_token) for segment in request.segments]


async def streams_have(requests: list[Request], num_tokens: int) -> None:
    await until(lambda: all(len(request.outputs) >= num_tokens for request in requests))


async def swap(sim: Sim, target: Target, *shards: int, options: SwapOptions = FINISH) -> list[SwapResult]:
    """Swap all shards, or the named ones."""
    named = shards or range(len(sim.dispatcher.engines))
    return await sim.dispatcher.swap(dict.fromkeys(named, target), options)


async def changing(sim: Sim, target: Target, options: SwapOptions = FINISH) -> SwapResult:
    [done] = await swap(sim, target, options=options)
    return done


async def test_sixty_four_streams_through_many_changes_lose_nothing(tmp_path: Path) -> None:
    second = costs_of(tmp_path, "second", load_ms=20.0)
    async with simulated(tmp_path, **ROOM) as sim:
        goals = cycle(
            [at_depth(sim, 10), other(sim, "second", model="second", cost_model=second), at_depth(sim, 20)]
        )
        asked = specs(192, max_new_tokens=60)
        pending = iter(asked)
        ended: dict[int, str] = {}
        requests: list[Request] = []

        async def client() -> None:
            for spec in pending:
                request = sim.dispatcher.submit(spec)
                requests.append(request)
                ended[spec.sampling.seed] = await text_of(request)

        clients = asyncio.gather(*(client() for _ in range(64)))
        num_swaps = 0
        while not clients.done():
            done = await changing(sim, next(goals), (FINISH, MIGRATE)[num_swaps % 5 == 4])
            num_swaps += 1
            assert set(done.phases_ms) >= {"prepare", "hold", "commit", "gap"}
        await clients
        assert num_swaps >= 10
        assert [ended[spec.sampling.seed] for spec in asked] == expected(asked)
        assert len({segment for request in requests for segment in authors(request)}) > 3
        assert sim.shards()[0].num_models == 1


async def test_depth_belongs_to_the_sequence_and_freed_memory_becomes_blocks(tmp_path: Path) -> None:
    async with simulated(tmp_path) as sim:
        num_blocks = sim.shards()[0].num_blocks
        first = sim.submit(*specs(8, max_new_tokens=300))
        await streams_have(first, 5)
        await changing(sim, at_depth(sim, 10))
        second = sim.submit(*specs(8, start=50, max_new_tokens=50))
        await outcomes(second)
        assert all(request.status is Status.RUNNING for request in first)
        assert sim.shards()[0].num_models == 2
        await outcomes(first)
        assert {tuple(authors(request)) for request in first} == {(("sim", 30, 0),)}
        assert {tuple(authors(request)) for request in second} == {(("sim", 10, 0),)}
        await outcomes(sim.submit(*specs(1, start=90)))
        assert sim.shards()[0].num_blocks > 2 * num_blocks


async def test_those_that_migrate_say_from_where_on(tmp_path: Path) -> None:
    async with simulated(tmp_path) as sim:
        asked = specs(8, max_new_tokens=200)
        requests = sim.submit(*asked)
        exact = sim.dispatcher.submit(make_spec(20, 200, 90_000, exact=True))
        await streams_have([*requests, exact], 5)
        done = await changing(sim, at_depth(sim, 10), MIGRATE)
        assert done.num_migrated == 8
        assert await outcomes(requests) == expected(asked)
        for request in requests:
            [before, after] = authors(request)
            assert before == ("sim", 30, 0)
            assert after[:2] == ("sim", 10)
            layers = [output.exit_layer for output in request.outputs]
            assert layers == [30] * after[2] + [10] * (200 - after[2])
        await text_of(exact)
        assert authors(exact) == [("sim", 30, 0)]


async def test_what_does_not_fit_beside_waits_for_what_runs_and_then_moves_it(tmp_path: Path) -> None:
    settings = {"kv_cache_bytes": 2**20, "max_total_tokens": 1000, **ROOM}
    costs = msgspec.structs.replace(FAST, kv_bytes_per_token=1000, layer_bytes=0, base_bytes=0)
    second = costs_of(tmp_path, "second", kv_bytes_per_token=1000, layer_bytes=0, base_bytes=0)
    async with simulated(tmp_path, costs, **settings) as sim:
        asked = specs(8, max_new_tokens=250)
        requests = sim.submit(*asked)
        await streams_have(requests, 5)
        swapping = asyncio.create_task(
            changing(
                sim,
                other(sim, "second", model="second", cost_model=second),
                SwapOptions(drain_s=0.2),
            )
        )
        await until(lambda: sim.dispatcher.engines[0].scheduler.is_holding)
        late = specs(3, start=50)
        held = sim.submit(*late)
        state = sim.dispatcher.state()
        assert state.held == 3
        assert state.shards[0].swap_phase in ("commit", "drain")
        done = await swapping
        state = sim.dispatcher.state()
        assert (state.held, [shard.swap_phase for shard in state.shards]) == (0, [""])
        assert done.phases_ms["commit"] + done.phases_ms["drain"] >= 190  # from the first commit that fails
        assert done.num_migrated == 8
        assert await outcomes([*requests, *held]) == expected([*asked, *late])
        assert {authors(request)[-1][0] for request in requests} == {"second"}
        assert {tuple(authors(request)) for request in held} == {(("second", 30, 0),)}


async def test_another_tokenizer_is_given_the_text(tmp_path: Path) -> None:
    shifted = FakeTokenizer("shifted", shift=7)
    async with simulated(tmp_path, max_batch_size=4) as sim:
        asked = specs(8, max_new_tokens=150)
        requests = sim.submit(*asked)
        await streams_have(requests[:4], 5)
        target = other(sim, "shifted", shifted, model="shifted")
        by_ids = sim.dispatcher.submit(msgspec.structs.replace(make_spec(20, 5, 90_000), prompt=None))
        await changing(sim, target, MIGRATE)
        with pytest.raises(GenerationFailed, match="given as token ids"):
            await text_of(by_ids)
        texts = await outcomes(requests)
        assert all(len(str(text).split()) == 150 for text in texts)
        for request, text in zip(requests, texts, strict=True):
            ids = [int(word) for word in str(text).split()]
            moved_at = authors(request)[-1][2]
            shown = [output.id for output in request.outputs]
            assert ids == shown[:moved_at] + [id - 7 for id in shown[moved_at:]]
            assert request.prompt_token_ids == [id + 7 for id in request.spec.prompt_token_ids]
            assert len(request.token_ids) == 170
        assert sum(len(request.segments) == 2 for request in requests) == 4


async def test_prompts_are_encoded_anew_beside_the_event_loop_which_goes_on(tmp_path: Path) -> None:
    """However long that takes: streams, health checks and other shards are not held up."""
    begun, may_end = threading.Event(), threading.Event()

    class Slow(FakeTokenizer):
        def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
            begun.set()
            assert threading.current_thread() is not threading.main_thread()
            assert may_end.wait(30)
            return super().encode(text, add_special_tokens)

    async with simulated(tmp_path, max_batch_size=4) as sim:
        asked = specs(8, max_new_tokens=150)
        requests = sim.submit(*asked)
        await streams_have(requests[:4], 5)
        await changing(sim, other(sim, "slow", Slow("slow", 7), model="slow"))
        await until(begun.is_set)
        sim.dispatcher.abort(requests[4])
        assert await outcomes(requests[:4]) == expected(asked[:4])
        assert all(request.status is Status.WAITING for request in requests[5:])
        may_end.set()
        await outcomes(requests[5:])
        assert {authors(request)[0][0] for request in requests[5:]} == {"slow"}
        assert requests[4].outputs == []


async def test_a_checkpoint_that_cannot_be_read_changes_nothing(tmp_path: Path) -> None:
    broken = costs_of(tmp_path, "broken", fails_on_load="The file model.safetensors is cut off.")
    async with simulated(tmp_path) as sim:
        asked = specs(32)
        requests = sim.submit(*asked)
        await streams_have(requests, 3)
        with pytest.raises(SwapError, match="cut off"):
            await swap(sim, other(sim, "broken", model="broken", cost_model=broken))
        assert await outcomes(requests) == expected(asked)
        assert {tuple(authors(request)) for request in requests} == {(("sim", 30, 0),)}
        assert (await changing(sim, at_depth(sim, 20))).served_model.ready.depth == 20


@pytest.mark.parametrize("moment", ["prepare", "commit", "after"])
async def test_a_shard_killed_in_mid_swap_loses_nothing(tmp_path: Path, moment: str) -> None:
    costs = msgspec.structs.replace(FAST, load_ms=300.0, commit_ms=300.0)
    second = costs_of(tmp_path, "second", load_ms=300.0, commit_ms=300.0)
    async with simulated(tmp_path, costs) as sim:
        asked = specs(32, max_new_tokens=400)
        requests = sim.submit(*asked)
        await streams_have(requests, 3)
        engine = sim.dispatcher.engines[0]
        target = other(sim, "second", model="second", cost_model=second)
        swapping = asyncio.create_task(swap(sim, target))
        await until(lambda: engine.state == "swapping")
        if moment == "commit":
            await until(lambda: engine.scheduler.is_holding)
        elif moment == "after":
            await swapping
        shard_processes()[0].kill()
        [result] = await asyncio.gather(swapping, return_exceptions=True)
        assert isinstance(result, SwapError) == (moment != "after")
        assert await outcomes(requests) == expected(asked)
        last = "second" if moment == "after" else "sim"
        assert {authors(request)[-1][0] for request in requests} == {last}
        assert sim.shards()[0].model == last
        await changing(sim, at_depth(sim, 10))


async def test_a_swap_under_way_ends_with_the_server_and_streams_are_finished(tmp_path: Path) -> None:
    slow = costs_of(tmp_path, "slow", load_ms=60_000.0)
    async with simulated(tmp_path) as sim:
        asked = specs(32)
        requests = sim.submit(*asked)
        await streams_have(requests, 3)
        target = other(sim, "slow", model="slow", cost_model=slow)
        swapping = asyncio.create_task(swap(sim, target))
        await until(lambda: sim.shards()[0].state == "swapping")
        _, ended = await asyncio.gather(sim.dispatcher.stop(drain=True), outcomes(requests))
        assert ended == expected(asked)
        with pytest.raises(SwapError, match="shutting down"):
            await swapping
        with pytest.raises(SwapRefused, match="shutting down"):
            await swap(sim, target)


async def test_one_swap_at_a_time_on_a_shard(tmp_path: Path) -> None:
    slow = costs_of(tmp_path, "slow", load_ms=500.0)
    async with simulated(tmp_path, num_shards=2) as sim:
        target = other(sim, "slow", model="slow", cost_model=slow)
        first = asyncio.create_task(swap(sim, target, 1))
        await until(lambda: sim.shards()[1].state == "swapping")
        with pytest.raises(SwapRefused, match="being swapped already"):
            await swap(sim, at_depth(sim, 10))
        await swap(sim, at_depth(sim, 10), 0)
        await first
        assert [(shard.model, shard.depth) for shard in sim.shards()] == [("sim", 10), ("slow", 30)]


async def test_of_several_shards_all_change_or_none(tmp_path: Path) -> None:
    second = costs_of(tmp_path, "second", load_ms=500.0)
    async with simulated(tmp_path, num_shards=2) as sim:
        asked = specs(32, max_new_tokens=200)
        requests = sim.submit(*asked)
        await streams_have(requests, 3)
        target = other(sim, "second", model="second", cost_model=second)
        swapping = asyncio.create_task(swap(sim, target))
        await until(lambda: sim.shards()[1].state == "swapping")
        assert sim.shards()[0].model == "second"
        process_of(sim, 1).kill()
        with pytest.raises(SwapError, match="died meanwhile"):
            await swapping
        await sim.all_serve()
        assert [shard.model for shard in sim.shards()] == ["sim", "sim"]
        assert await outcomes(requests) == expected(asked)


async def half_changed(sim: Sim, target: Target) -> asyncio.Task[Decision]:
    """A change of two shards, of which the first serves the new model and the second loads it."""
    controller = SwapController(
        sim.dispatcher, Catalog(Config(), Repository(candidates=()), []), AuditLog("here")
    )
    order = ChangeRequest(kind="swap", by="operator", why="", to=target, options=FINISH)
    changing = asyncio.create_task(controller.carry_out(order))
    await until(lambda: sim.shards()[1].state == "swapping")
    assert sim.shards()[0].model == "second"
    return changing


async def test_what_cannot_be_changed_back_is_told_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    second = costs_of(tmp_path, "second", load_ms=500.0)
    async with simulated(tmp_path, num_shards=2) as sim:
        target = other(sim, "second", model="second", cost_model=second)
        changing = await half_changed(sim, target)
        costs_of(tmp_path, "costs", fails_on_load="The file is gone.")
        process_of(sim, 1).kill()
        decision = await changing
        assert decision.outcome is Outcome.FAILED
        assert decision.error is not None
        assert "Shard 0 goes on with second: The file is gone." in decision.error
        assert sim.shards()[0].model == "second"
    assert "could not be undone" in caplog.text


async def test_a_shard_that_dies_before_it_is_changed_back_comes_back_so(tmp_path: Path) -> None:
    second = costs_of(tmp_path, "second", load_ms=500.0)
    async with simulated(tmp_path, num_shards=2) as sim:
        changing = await half_changed(sim, other(sim, "second", model="second", cost_model=second))
        process_of(sim, 0).kill()
        process_of(sim, 1).kill()
        assert (await changing).outcome is Outcome.ROLLED_BACK
        await sim.all_serve()
        assert [shard.model for shard in sim.shards()] == ["sim", "sim"]


async def test_requests_of_a_killed_shard_wait_for_their_own_model(tmp_path: Path) -> None:
    second = costs_of(tmp_path, "second")
    async with simulated(tmp_path, num_shards=2, **ROOM) as sim:
        target = other(sim, "second", model="second", cost_model=second)
        await swap(sim, target, 1)
        asked = specs(24, max_new_tokens=300)
        requests = sim.submit(*asked)
        await streams_have(requests, 3)
        assert {authors(request)[0][0] for request in requests} == {"sim", "second"}
        for process in shard_processes():
            process.kill()
        assert await outcomes(requests) == expected(asked)
        assert all(len(request.segments) == 1 for request in requests)


async def test_exact_requests_go_where_all_layers_are(tmp_path: Path) -> None:
    async with simulated(tmp_path, num_shards=2) as sim:
        await swap(sim, at_depth(sim, 10), 0)
        exact = sim.submit(*specs(6, exact=True))
        await outcomes(exact)
        assert {tuple(authors(request)) for request in exact} == {(("sim", 30, 0),)}
        assert sim.dispatcher.supports_exact
        sim.dispatcher.drain()
        waiting = specs(1, start=50, exact=True)
        sim.dispatcher.resume(0)
        [late] = sim.submit(*waiting)
        await swap(sim, at_depth(sim, 10), 1)
        with pytest.raises(GenerationFailed, match="no shard has them") as refused:
            await text_of(late)
        assert refused.value.status == 422
        assert not sim.dispatcher.supports_exact
