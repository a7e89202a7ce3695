"""The loop of one shard, against a connection that is played by hand."""

import asyncio
import math
from collections.abc import Callable

import msgspec
import pytest

from router.catalog.repository import Choice
from router.catalog.served_model import Segment
from router.fleet.balancer import Balancer
from router.fleet.client import Answered, Asked, ShardDied
from router.fleet.engine import Engine
from router.fleet.live_requests import RequestRegistry
from router.fleet.swap import Inflight, SwapError, SwapOptions, SwapResult
from router.scheduling.request import GenerationFailed, Request, Status
from shard.messages import (
    Commit,
    Committed,
    Discard,
    OlderReport,
    Prepare,
    Prepared,
    Ready,
    SequenceOutput,
    ShardConfig,
    Step,
    StepOutput,
    SwapFailed,
    TokenOutput,
)
from telemetry import tasks
from tests.router.fakes import answer_of, make_request, make_spec, make_target
from tests.router.sim_serving import until

READY = Ready("m", "v1", "sim", "float32", 30, 30, 10_000, 100, 16, 50, [2], 0, 0, 0.0)


class PlayedShard:
    """Launcher and connection in one. `lives` counts the starts."""

    is_late = False
    last_heard = None

    def __init__(self) -> None:
        self.lives = 0
        self.configs: list[ShardConfig] = []  # that each life was started with
        self.cannot_load: set[str] = set()  # models
        self.sent: list[Step] = []
        self.received: list[Prepare | Commit | Discard] = []
        self.answers: list[Answered] = []
        self.death: ShardDied | None = None

    async def start(self, config: ShardConfig, wake: Callable[[], None]) -> tuple["PlayedShard", Ready]:
        self.lives += 1
        self.configs.append(config)
        self.wake = wake
        self.sent.clear()
        if config.model in self.cannot_load:
            raise ShardDied("It cannot be loaded.", permanent=True)
        return self, READY

    async def end(self) -> None:
        pass

    def send(self, message: Asked) -> None:
        if isinstance(message, Step):
            self.sent.append(message)
        else:
            self.received.append(message)

    def take_answers(self) -> list[Answered]:
        if self.death is not None:
            death, self.death = self.death, None
            raise death
        answers, self.answers = self.answers, []
        return answers

    async def answer(self, step: Step, token: int = 5) -> None:
        """Answer a step with one token for each sequence, and let the loop take it."""
        made = [TokenOutput(token, -0.1, 30)]
        outputs = [SequenceOutput(work.id, work.attempt, 8, made) for work in step.work]
        await self.say(StepOutput(step.number, outputs, [], 40, len(outputs)))

    async def say(self, answer: Answered) -> None:
        """Deliver an answer, and let the loop and its waiters run."""
        self.answers.append(answer)
        self.wake()
        for _ in range(4):
            await asyncio.sleep(0)

    async def die(self) -> None:
        self.death = ShardDied("played")
        self.wake()
        await asyncio.sleep(0)


class Stage:
    def __init__(self) -> None:
        self.shard = PlayedShard()
        self.balancer = Balancer(RequestRegistry())
        self.engine = Engine(0, make_target(), self.shard, self.balancer)
        self.balancer.shards.append(self.engine)

    async def submit(self, id: int, **options: object) -> Request:
        request = make_request(id, spec=make_spec(8, 20, **options))
        self.balancer.registry.enter(request)
        self.balancer.add(request)
        await asyncio.sleep(0)
        return request


@pytest.fixture
async def stage():
    stage = Stage()
    task = asyncio.create_task(stage.engine.run())
    await until(stage.balancer.serving.is_set)
    yield stage
    await tasks.cancel(task)


async def test_the_next_step_is_sent_before_the_one_that_runs_is_done_but_no_third(stage: Stage) -> None:
    request = await stage.submit(1)
    assert [[work.num_tokens for work in step.work] for step in stage.shard.sent] == [[8], [1]]
    await stage.shard.answer(stage.shard.sent[0])
    assert len(stage.shard.sent) == 3
    assert answer_of(request) == [5]
    assert request.segments == [Segment("m", "v1", 30, from_token=0)]


async def test_a_new_request_takes_the_free_slot_at_once(stage: Stage) -> None:
    await stage.submit(1)
    for step in stage.shard.sent[:2]:
        await stage.shard.answer(step)
    await stage.submit(2)
    assert [new.id for step in stage.shard.sent for new in step.new] == [1]
    await stage.shard.answer(stage.shard.sent[2])
    assert [new.id for new in stage.shard.sent[-1].new] == [2]


async def test_a_stop_string_ends_a_request_and_the_next_step_drops_it(
    stage: Stage,
) -> None:
    request = await stage.submit(1, stop=("7 ",))
    first, second = stage.shard.sent
    await stage.shard.answer(first, token=7)
    assert request.status is Status.FINISHED
    assert stage.shard.sent[-1].drop == [(1, 0)]
    assert stage.balancer.registry.live == {}
    await stage.shard.answer(second, token=9)
    assert answer_of(request) == [7]


async def test_logits_that_are_no_numbers_fail_their_request_alone(stage: Stage) -> None:
    request = await stage.submit(1)
    [first, second] = stage.shard.sent
    output = SequenceOutput(1, 0, 8, [TokenOutput(0, math.nan, 30)])
    await stage.shard.say(StepOutput(first.number, [output], [], 49, 1))
    assert (request.status, answer_of(request), stage.balancer.registry.live) == (Status.FINISHED, [], {})
    with pytest.raises(GenerationFailed, match="not numbers") as failure:
        await request.take()
    assert failure.value.status == 424
    assert stage.shard.sent[-1].drop == [(1, 0)]
    await stage.shard.answer(second)
    assert stage.engine.state == "serving"


async def test_a_sequence_that_cannot_go_on_fails_its_request_alone(stage: Stage) -> None:
    request = await stage.submit(1)
    [first, second] = stage.shard.sent
    output = SequenceOutput(1, 0, 8, error="The answer's grammar cannot be used: too large")
    await stage.shard.say(StepOutput(first.number, [output], [], 49, 1))
    with pytest.raises(GenerationFailed, match="too large") as failure:
        await request.take()
    assert (failure.value.status, stage.balancer.registry.live) == (424, {})
    await stage.shard.answer(second)
    assert stage.engine.state == "serving"


async def test_a_dead_shard_is_started_again_and_its_requests_with_their_tokens(stage: Stage) -> None:
    request = await stage.submit(1)
    await stage.shard.answer(stage.shard.sent[0])
    await stage.shard.die()
    await until(lambda: stage.shard.lives == 2 and bool(stage.shard.sent))
    [new] = stage.shard.sent[0].new
    assert (new.attempt, new.token_ids) == (1, [*request.spec.prompt_token_ids, 5])
    assert (stage.engine.num_deaths, stage.engine.state) == (1, "serving")


async def test_an_answer_out_of_turn_costs_the_shard_its_life_not_the_router_its_loop(stage: Stage) -> None:
    request = await stage.submit(1)
    await stage.shard.answer(msgspec.structs.replace(stage.shard.sent[0], number=9))
    await until(lambda: stage.shard.lives == 2 and bool(stage.shard.sent))
    assert request.attempt == 1
    assert "out of turn" in stage.engine.last_death.reason


OTHER = msgspec.structs.replace(READY, model="other", version="v2", depth=10)
TARGET = make_target("other")


async def swapping(stage: Stage, inflight: Inflight = Inflight.FINISH) -> asyncio.Task[SwapResult]:
    """A swap that has been prepared and whose commit the shard has been asked for."""
    swap = asyncio.create_task(stage.engine.swap(TARGET, SwapOptions(inflight, drain_s=10.0)))
    await asyncio.sleep(0)
    assert stage.shard.received == [Prepare(1, TARGET.config)]
    await stage.shard.say(Prepared(1, OTHER, {"read": 3.0}))
    assert stage.shard.received[1:] == [Commit(1)]
    return swap


async def test_nothing_begins_between_a_commit_and_its_answer_and_then_it_does_on_the_new_model(
    stage: Stage,
) -> None:
    first = await stage.submit(1)
    swap = await swapping(stage)
    second = await stage.submit(2)
    for step in stage.shard.sent[:2]:
        await stage.shard.answer(step)
    assert {new.id for step in stage.shard.sent for new in step.new} == {1}
    assert second.status is Status.WAITING
    await stage.shard.say(Committed(1, OTHER, 2.0, {}))
    await stage.shard.answer(stage.shard.sent[2])
    [new] = [new for step in stage.shard.sent for new in step.new if new.id == 2]
    assert new.epoch == 1
    assert second.segments == [Segment("other", "v2", 10, from_token=0)]
    assert first.segments == [Segment("m", "v1", 30, from_token=0)]
    done = await swap
    assert done.phases_ms["gap"] == 2.0
    assert done.phases_ms["read"] == 3.0


async def test_a_shard_that_says_no_keeps_what_it_has(stage: Stage) -> None:
    swap = asyncio.create_task(stage.engine.swap(TARGET, SwapOptions()))
    await asyncio.sleep(0)
    await stage.shard.say(SwapFailed(1, "It has another shape."))
    with pytest.raises(SwapError, match="another shape"):
        await swap
    assert stage.shard.received[-1] == Discard(1)
    request = await stage.submit(1)
    assert request.segments[0].model == "m"
    assert stage.engine.target.name == "m"


async def test_where_both_do_not_fit_it_commits_again_when_somebody_has_ended(stage: Stage) -> None:
    request = await stage.submit(1)
    swap = await swapping(stage)
    await stage.shard.say(SwapFailed(1, "There is no room."))
    assert stage.shard.received[-1] == Commit(1)
    assert len(stage.shard.received) == 2
    stage.balancer.registry.fail(request, GenerationFailed("aborted"), 0.0)
    stage.engine.drop(request)
    await stage.shard.answer(stage.shard.sent[0])
    assert stage.shard.received[2:] == [Commit(1)]
    await stage.shard.say(Committed(1, OTHER, 2.0, {}))
    assert (await swap).num_migrated == 0


async def test_those_that_migrate_begin_again_on_the_new_model_with_their_tokens(stage: Stage) -> None:
    request = await stage.submit(1)
    await stage.shard.answer(stage.shard.sent[0])
    swap = await swapping(stage, Inflight.MIGRATE)
    await stage.shard.say(Committed(1, OTHER, 2.0, {}))
    assert (await swap).num_migrated == 1
    for step in stage.shard.sent[1:3]:
        await stage.shard.say(StepOutput(step.number, [], [], 40, 0, epoch=1, older=[OlderReport(0, 1)]))
    [again] = [new for step in stage.shard.sent for new in step.new if new.attempt == 1]
    assert (again.epoch, again.token_ids) == (1, [*request.spec.prompt_token_ids, 5])
    assert [(segment.model, segment.from_token) for segment in request.segments] == [("m", 0), ("other", 1)]


async def test_a_commit_that_is_answered_too_late_to_be_waited_for_counts(stage: Stage) -> None:
    swap = await swapping(stage)
    stage.engine.end_swap(SwapError("The server is shutting down."))
    with pytest.raises(SwapError, match="shutting down"):
        await swap
    await stage.shard.say(Committed(1, OTHER, 2.0, {}))
    assert stage.engine.target.name == "other"
    assert (await stage.submit(1)).segments[0].model == "other"


async def test_a_new_life_begins_with_what_was_committed_last_or_else_with_what_that_replaced(
    stage: Stage,
) -> None:
    swap = await swapping(stage)
    await stage.shard.say(Committed(1, OTHER, 2.0, {}))
    await swap
    await stage.shard.die()
    await until(lambda: stage.shard.lives == 2)
    assert [config.model for config in stage.shard.configs] == ["m", "other"]
    stage.shard.cannot_load.add("other")
    await stage.shard.die()
    await until(lambda: stage.shard.lives == 4 and stage.engine.scheduler is not None)
    assert [config.model for config in stage.shard.configs] == ["m", "other", "other", "m"]
    assert stage.engine.target.name == "m"
    assert not stage.engine.is_hopeless


async def test_no_request_is_blamed_for_a_death_while_the_model_is_changed(stage: Stage) -> None:
    request = await stage.submit(1)
    swap = await swapping(stage)
    await stage.shard.die()
    with pytest.raises(SwapError, match="died meanwhile: played"):
        await swap
    assert (request.num_shard_deaths, request.is_suspect) == (0, False)
    assert stage.engine.target.name == "m"


async def test_prompts_are_left_to_a_shard_only_while_requests_begin_on_what_is_good_for_them(
    stage: Stage,
) -> None:
    def is_left_to_it() -> bool:
        return bool(stage.balancer.routes.excluded_keys(Choice("another", 10)))

    stage.balancer.route({"chat": frozenset([Choice("m", 30)])})
    assert is_left_to_it()
    stage.engine.drain()
    assert not is_left_to_it()
    stage.engine.resume()
    assert is_left_to_it()
    await stage.shard.die()
    assert not is_left_to_it()
    await until(lambda: stage.shard.lives == 2)
    assert is_left_to_it()
    stage.engine.reset("played")
    assert not is_left_to_it()


async def test_prompts_are_no_longer_left_to_a_shard_whose_model_was_changed(stage: Stage) -> None:
    stage.balancer.route({"chat": frozenset([Choice("m", 30)])})
    assert stage.balancer.routes.excluded_keys(Choice("another", 10))
    await swapping(stage)
    await stage.shard.say(Committed(1, OTHER, 2.0, {}))
    assert not stage.balancer.routes.excluded_keys(Choice("another", 10))
