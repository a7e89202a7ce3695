"""Requests over real shard processes: shared out, replayed, refused, drained, and never lost."""

import asyncio
import contextlib
from pathlib import Path
from random import Random

import msgspec
import pytest

from router.catalog.served_model import Target
from router.fleet.client import Patience, ShardDied
from router.fleet.dispatcher import Dispatcher
from router.fleet.launcher import ChildLauncher
from router.scheduling.request import GenerationFailed, Spec, Status
from router.settings.config import Config
from tests.router.fakes import TOKENIZER, expected_answer, make_spec
from tests.router.sim_serving import FAST, Sim, outcomes, shard_processes, simulated, text_of, until

POISON = 777


def specs(count: int, num_prompt_tokens: int = 20, max_new_tokens: int = 60, start: int = 1) -> list[Spec]:
    return [make_spec(num_prompt_tokens, max_new_tokens, 1000 * (start + n)) for n in range(count)]


def expected(asked: list[Spec]) -> list[str]:
    return ["".join(f"{id} " for id in expected_answer(spec, FAST)) for spec in asked]


def poisoned(spec: Spec) -> Spec:
    return msgspec.structs.replace(spec, prompt_token_ids=[*spec.prompt_token_ids[:-1], POISON])


async def streams_have(sim: Sim, num_tokens: int) -> None:
    live = [request for request in sim.dispatcher.requests() if request.status is not Status.FINISHED]
    await until(lambda: all(len(request.outputs) >= num_tokens for request in live))


async def test_streams_get_what_the_model_answers(tmp_path: Path) -> None:
    async with simulated(tmp_path) as sim:
        asked = specs(30)
        assert await outcomes(sim.submit(*asked)) == expected(asked)
        state = sim.dispatcher.state()
        assert (state.waiting, state.running, state.queued_tokens) == (0, 0, 0)
        assert state.shards[0].num_free_blocks == state.shards[0].num_blocks


async def test_it_tells_how_much_of_what_is_cached_prompts_ask_for(tmp_path: Path) -> None:
    async with simulated(tmp_path) as sim:
        assert sim.dispatcher.reusable_tokens == 0
        for _ in range(2):
            await outcomes(sim.submit(make_spec(160, 4, 1000)))
        [cache] = [shard.cache for shard in sim.shards()]
        assert 0 < cache.hit_share < 1
        assert sim.dispatcher.reusable_tokens == cache.known_blocks * 16 * cache.hit_share > 0


async def test_streams_go_on_when_their_only_shard_is_killed(tmp_path: Path) -> None:
    async with simulated(tmp_path) as sim:
        asked = specs(16)
        requests = sim.submit(*asked)
        await streams_have(sim, 10)
        shard_processes()[0].kill()
        assert await outcomes(requests) == expected(asked)
        assert {request.num_shard_deaths for request in requests} == {1}
        assert [shard for shard, _ in sim.record.deaths] == [0]


async def test_prompts_that_were_half_computed_when_a_shard_was_killed_are_computed_anew(
    tmp_path: Path,
) -> None:
    costs = msgspec.structs.replace(FAST, token_ms=0.2)
    async with simulated(tmp_path, costs, max_batch_prefill_tokens=64) as sim:
        asked = specs(4, num_prompt_tokens=1500, max_new_tokens=5)
        requests = sim.submit(*asked)
        await until(lambda: any(0 < request.num_computed_tokens < 1500 for request in requests))
        shard_processes()[0].kill()
        assert not any(request.outputs for request in requests)
        assert await outcomes(requests) == expected(asked)
        assert sim.record.deaths != []


async def test_requests_of_a_killed_shard_go_on_where_another_serves(tmp_path: Path) -> None:
    async with simulated(tmp_path, num_shards=2) as sim:
        asked = specs(16, max_new_tokens=100)
        requests = sim.submit(*asked)
        await streams_have(sim, 10)
        shard_processes()[0].kill()
        assert await outcomes(requests) == expected(asked)
        assert sorted({request.num_shard_deaths for request in requests}) == [0, 1]


async def test_a_shard_that_hangs_is_noticed_and_ended(tmp_path: Path) -> None:
    async with simulated(tmp_path, heartbeat_timeout_ms=1000) as sim:
        asked = specs(8)
        requests = sim.submit(*asked)
        await streams_have(sim, 10)
        hung = shard_processes()[0]
        hung.suspend()
        assert await outcomes(requests) == expected(asked)
        assert "has not answered" in sim.record.deaths[0][1]
        assert not hung.is_running()


@pytest.mark.parametrize("num_shards", [1, 2])
async def test_a_poisonous_request_ends_at_the_second_death_alone(tmp_path: Path, num_shards: int) -> None:
    costs = msgspec.structs.replace(FAST, fails_on_token=POISON)
    async with simulated(tmp_path, costs, num_shards=num_shards) as sim:
        asked = specs(12, max_new_tokens=100)
        requests = sim.submit(*asked)
        await streams_have(sim, 5)
        [poisonous] = sim.submit(poisoned(make_spec(20, 20, 90_000)))
        ended = await outcomes([poisonous])
        assert isinstance(ended[0], GenerationFailed)
        assert (ended[0].status, ended[0].kind) == (424, "generation")
        assert await outcomes(requests) == expected(asked)
        assert [reason for _, reason in sim.record.deaths] == ["token 777 was to be computed"] * 2


async def test_a_step_that_never_ends_is_noticed(tmp_path: Path) -> None:
    costs = msgspec.structs.replace(FAST, hangs_on_token=POISON)
    settings = {"step_timeout_ms": 800, "heartbeat_timeout_ms": 1000}
    async with simulated(tmp_path, costs, **settings) as sim:
        asked = specs(3, max_new_tokens=20)
        poisonous, *requests = sim.submit(poisoned(make_spec(20, 20, 90_000)), *asked)
        assert await outcomes(requests) == expected(asked)
        assert (await outcomes([poisonous]))[0].status == 424
        assert all("A step has taken longer" in reason for _, reason in sim.record.deaths)


async def test_shards_share_the_load(tmp_path: Path) -> None:
    async with simulated(tmp_path, num_shards=3) as sim:
        asked = specs(60)
        assert await outcomes(sim.submit(*asked)) == expected(asked)
        started = [sum(o.num_tokens for s, o in sim.record.steps if s == shard) for shard in range(3)]
        assert max(started) < 1.5 * min(started)


async def test_memory_that_runs_out_costs_time_but_no_tokens(tmp_path: Path) -> None:
    num_tokens = 40 * 16
    settings = {"kv_cache_bytes": num_tokens * 4096, "max_total_tokens": 400, "max_queued_tokens": 10_000}
    costs = msgspec.structs.replace(FAST, step_ms=0.2, kv_bytes_per_token=4096)
    async with simulated(tmp_path, costs, **settings) as sim:
        asked = specs(20, num_prompt_tokens=40, max_new_tokens=150)
        assert await outcomes(sim.submit(*asked)) == expected(asked)
        assert any(what == "preempted" for what, _ in sim.record.events)


@pytest.mark.parametrize("state", ["queued", "in prefill", "decoding"])
async def test_an_aborted_request_leaves_nothing_behind_within_two_steps(tmp_path: Path, state: str) -> None:
    costs = msgspec.structs.replace(FAST, step_ms=20.0)
    async with simulated(tmp_path, costs, max_batch_prefill_tokens=64) as sim:
        [request] = sim.submit(make_spec(400 if state == "in prefill" else 20, 500))
        if state == "decoding":
            await until(lambda: len(request.outputs) > 2)
        elif state == "in prefill":
            await until(lambda: request.num_computed_tokens > 64)
        scheduler = sim.dispatcher.engines[0].scheduler
        assert scheduler is not None
        num_sent = scheduler.num_steps  # two of them at most are still to be run
        sim.dispatcher.abort(request, "gone")
        sim.dispatcher.abort(request)
        with pytest.raises(GenerationFailed, match="gone"):
            await text_of(request)
        if state != "queued":
            await until(lambda: bool(sim.record.steps) and sim.record.steps[-1][1].num_sequences == 0)
        assert not sim.record.steps or sim.record.steps[-1][1].number <= num_sent + 1
        [shard] = sim.shards()
        assert (shard.running, shard.num_free_blocks) == (0, shard.num_blocks)


async def test_too_many_requests_are_refused_on_arrival(tmp_path: Path) -> None:
    async with simulated(tmp_path, max_concurrent_requests=4) as sim:
        requests = sim.submit(*specs(3))
        sim.dispatcher.try_admit(10, num_requests=1)
        with pytest.raises(GenerationFailed, match="4 requests at a time") as refused:
            sim.dispatcher.try_admit(10, num_requests=2)
        assert (refused.value.status, refused.value.kind) == (429, "overloaded")
        assert refused.value.retry_after_s is not None and refused.value.retry_after_s >= 1
        sim.submit(*specs(1, start=9))
        with pytest.raises(GenerationFailed):
            sim.submit(*specs(1, start=10))
        await outcomes(requests)
        sim.submit(*specs(1, start=11))


async def test_too_many_waiting_tokens_are_refused_on_arrival(tmp_path: Path) -> None:
    async with simulated(tmp_path, max_batch_size=1, max_queued_tokens=100) as sim:
        requests = sim.submit(*specs(1))
        await until(lambda: requests[0].status is Status.RUNNING)
        requests += sim.submit(make_spec(90, 5, 5000))
        with pytest.raises(GenerationFailed, match="100 tokens"):
            sim.dispatcher.try_admit(11)
        requests += sim.submit(make_spec(10, 5, 6000))
        assert sim.dispatcher.state().queued_tokens == 100
        await outcomes(requests)


async def test_a_refusal_says_when_places_become_free(tmp_path: Path) -> None:
    costs = msgspec.structs.replace(FAST, step_ms=50.0)
    async with simulated(tmp_path, costs, max_batch_size=1, max_concurrent_requests=6) as sim:
        await outcomes(sim.submit(make_spec(10, 10)))  # takes half a second
        sim.submit(*specs(6, max_new_tokens=10))
        await until(lambda: sim.dispatcher.state().running == 1)
        with pytest.raises(GenerationFailed) as refused:
            sim.dispatcher.try_admit(1)
        assert refused.value.retry_after_s is not None
        assert 3 <= refused.value.retry_after_s <= 20  # when six have ended, of half a second each


async def test_clients_that_leave_at_random_moments_leave_nothing_behind(tmp_path: Path) -> None:
    random = Random(1)
    settings = {"num_shards": 2, "max_concurrent_requests": 200, "max_queued_tokens": 1_000_000}
    async with simulated(tmp_path, **settings) as sim:

        async def leave(spec: Spec) -> None:
            request = sim.dispatcher.submit(spec)
            with contextlib.suppress(TimeoutError, asyncio.CancelledError):
                await asyncio.wait_for(text_of(request), random.uniform(0.0, 0.5))
            sim.dispatcher.abort(request)

        await asyncio.gather(*(leave(spec) for spec in specs(200, max_new_tokens=500)))
        await until(lambda: all(not step.num_sequences for step in dict(sim.record.steps).values()))
        assert all(shard.num_free_blocks == shard.num_blocks for shard in sim.shards())
        state = sim.dispatcher.state()
        assert (state.waiting, state.running, state.queued_tokens) == (0, 0, 0)


async def test_a_request_is_refused_at_its_deadline_not_served_late(tmp_path: Path) -> None:
    async with simulated(tmp_path, max_batch_size=1) as sim:
        now = asyncio.get_running_loop().time()
        with pytest.raises(GenerationFailed, match="already passed") as late:
            sim.submit(make_spec(deadline_s=now))
        assert late.value.status == 422
        [first] = sim.submit(make_spec(20, 200))
        in_time, too_late = sim.submit(
            make_spec(20, 5, 5000, deadline_s=now + 20), make_spec(20, 5, 6000, deadline_s=now + 0.1)
        )
        with pytest.raises(GenerationFailed, match="before its deadline") as refused:
            await text_of(too_late)
        assert refused.value.status == 429
        assert first.status is Status.RUNNING
        assert all(isinstance(end, str) for end in await outcomes([first, in_time]))


async def test_a_drained_shard_gets_nothing_new_until_resumed(tmp_path: Path) -> None:
    async with simulated(tmp_path, num_shards=2) as sim:
        sim.dispatcher.drain(1)
        asked = specs(6)
        requests = sim.submit(*asked)
        assert await outcomes(requests) == expected(asked)
        assert {request.shard for request in requests} == {0}
        assert [shard.state for shard in sim.shards()] == ["serving", "draining"]
        sim.dispatcher.drain()
        assert not sim.dispatcher.is_ready
        with pytest.raises(GenerationFailed, match="drained"):
            sim.submit(*asked)
        sim.dispatcher.resume(1)
        assert sim.dispatcher.is_ready
        [request] = sim.submit(asked[0])
        await text_of(request)
        assert request.shard == 1
        with pytest.raises(KeyError):
            sim.dispatcher.drain(2)


async def test_a_draining_shard_finishes_what_it_has_begun(tmp_path: Path) -> None:
    async with simulated(tmp_path) as sim:
        asked = specs(4)
        requests = sim.submit(*asked)
        await streams_have(sim, 5)
        sim.dispatcher.drain()
        assert await outcomes(requests) == expected(asked)


async def test_a_graceful_stop_lets_streams_end(tmp_path: Path) -> None:
    async with simulated(tmp_path, max_batch_size=4) as sim:
        asked = specs(8)
        requests = sim.submit(*asked)
        await streams_have(sim, 0)
        _, ended = await asyncio.gather(sim.dispatcher.stop(drain=True), outcomes(requests))
        assert ended == expected(asked)
        with pytest.raises(GenerationFailed, match="shutting down"):
            sim.submit(*asked)
        assert shard_processes() == []


async def test_what_has_not_ended_in_time_fails_and_says_why(tmp_path: Path) -> None:
    async with simulated(tmp_path, max_batch_size=2, shutdown_timeout_ms=100) as sim:
        requests = sim.submit(*specs(4, max_new_tokens=1000))
        _, ended = await asyncio.gather(sim.dispatcher.stop(drain=True), outcomes(requests))
        assert [end.kind for end in ended] == ["incomplete_generation"] * 4
        assert all("shut down" in str(end) for end in ended)


@pytest.mark.parametrize("num_shards", [1, 8])
async def test_shards_that_die_in_the_moment_of_a_stop_neither_hold_it_up_nor_come_back(
    tmp_path: Path, num_shards: int
) -> None:
    random = Random(num_shards)
    for _ in range(12):
        async with simulated(tmp_path, num_shards=num_shards) as sim:
            killed = random.sample(shard_processes(), random.randint(1, num_shards))
            requests = sim.submit(*specs(num_shards))
            for process in killed:
                process.kill()
            async with asyncio.timeout(20):
                num_dead = random.randint(0, len(killed))
                while sum(shard.state == "dead" for shard in sim.shards()) < num_dead:  # noqa: ASYNC110 (in that very moment)
                    await asyncio.sleep(0)
                await sim.dispatcher.stop(drain=random.random() < 0.5)
            assert all(request.status is Status.FINISHED for request in requests)
        assert shard_processes() == []


async def test_a_shard_that_waits_to_be_started_again_is_not_started_in_a_stop(tmp_path: Path) -> None:
    async with simulated(tmp_path) as sim:
        (tmp_path / "costs.json").write_text("no json")
        shard_processes()[0].kill()
        await until(lambda: "cannot be read" in sim.shards()[0].reason)
        (tmp_path / "costs.json").write_text("{}")
        async with asyncio.timeout(20):
            await sim.dispatcher.stop(drain=True)
        assert sim.shards()[0].state == "dead"


async def test_what_serves_is_told_of_shards_that_serve(tmp_path: Path) -> None:
    async with simulated(tmp_path, num_shards=2) as sim:
        served_model = sim.dispatcher.served_model(0)
        assert served_model is not None
        assert (served_model.target.name, list(sim.dispatcher.served_models)) == ("sim", [0, 1])
        launcher = sim.dispatcher.engines[0].launcher
        assert isinstance(launcher, ChildLauncher) and launcher.process is not None
        launcher.process.kill()
        await until(lambda: list(sim.dispatcher.served_models) == [1])
        assert sim.dispatcher.served_model(0) is None
        await sim.all_serve()
        assert list(sim.dispatcher.served_models) == [0, 1]


async def test_a_keeper_that_fails_is_heard_of_and_begins_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    class Faulty(ChildLauncher):
        has_failed = False

        async def end(self) -> None:
            await super().end()
            if not Faulty.has_failed:
                Faulty.has_failed = True
                raise OSError("Too many open files")

    async with simulated(tmp_path, launch=lambda _, shard: Faulty(shard, Patience())) as sim:
        [request] = sim.submit(make_spec(20, 1000))
        await streams_have(sim, 5)
        shard_processes()[0].kill()
        await until(lambda: Faulty.has_failed)
        assert "Too many open files" in sim.shards()[0].reason
        asked = specs(1)
        assert await outcomes(sim.submit(*asked)) == expected(asked)
        assert isinstance((await outcomes([request]))[0], str)
    assert "The engine of shard 0 failed" in caplog.text


async def test_a_shard_that_never_can_serve_says_why_at_the_start(tmp_path: Path) -> None:
    (tmp_path / "costs.json").write_text('{"step_ms": "fast"}')
    config = Config(device="sim", cost_model=str(tmp_path / "costs.json"), num_shards=2)
    dispatcher = Dispatcher(config, Target("sim", config.shard_config(tmp_path, 0), TOKENIZER))
    try:
        with pytest.raises(ShardDied, match=r"The cost model .*costs.json cannot be read: .*step_ms"):
            await dispatcher.start()
        assert dispatcher.limits is None
    finally:
        await dispatcher.stop(drain=True)
    assert shard_processes() == []


async def test_when_no_shard_can_be_brought_up_again_requests_end_with_the_reason(tmp_path: Path) -> None:
    async with simulated(tmp_path) as sim:
        requests = sim.submit(*specs(2))
        await streams_have(sim, 5)
        (tmp_path / "costs.json").write_text("no json")
        shard_processes()[0].kill()
        ended = await outcomes(requests)
        assert [(end.status, "cannot be read" in str(end)) for end in ended] == [(424, True)] * 2
        with pytest.raises(GenerationFailed, match="No shard can serve"):
            sim.submit(*specs(1))


async def test_observers_learn_everything_in_order_and_their_faults_stay_theirs(tmp_path: Path) -> None:
    class Broken:
        def __getattr__(self, name: str) -> object:
            raise RuntimeError("broken")

    async with simulated(tmp_path) as sim:
        sim.dispatcher.add_observer(Broken())
        [request] = sim.submit(make_spec(20, 3))
        await text_of(request)
        await until(lambda: ("finished", request.id) in sim.record.events)
        what = [what for what, _ in sim.record.events]
        assert what == ["submitted", "started", "tokens", "tokens", "tokens", "finished"]
        assert sim.dispatcher.find(request.id) is request
        assert sim.dispatcher.requests() == [request]
