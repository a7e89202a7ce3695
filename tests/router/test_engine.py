"""The loop of one shard, against a connection that is played by hand."""

import asyncio
from collections.abc import Callable

import msgspec
import pytest

from router.engine import Engine
from router.generation import Segment
from router.ledger import Ledger
from router.pool import Pool
from router.request import Request, Status
from router.shard_client import ShardDied
from shard.messages import Ready, SequenceOutput, ShardConfig, Step, StepOutput, TokenOutput
from tests.router.fakes import answer_of, make_request, make_spec, make_target
from tests.router.sim_serving import until

READY = Ready("m", "v1", "sim", "float32", 30, 30, 1000, 100, 16, 50, [2], 0, 0, 0.0)


class PlayedShard:
    """Launcher and connection in one. `lives` counts the starts."""

    is_late = False
    last_heard = None

    def __init__(self) -> None:
        self.lives = 0
        self.sent: list[Step] = []
        self.outputs: list[StepOutput] = []
        self.death: ShardDied | None = None

    async def start(self, config: ShardConfig, wake: Callable[[], None]) -> tuple["PlayedShard", Ready]:
        self.lives += 1
        self.wake = wake
        self.sent.clear()
        return self, READY

    async def end(self) -> None:
        pass

    def send(self, step: Step) -> None:
        self.sent.append(step)

    def take_answers(self) -> list[StepOutput]:
        if self.death is not None:
            death, self.death = self.death, None
            raise death
        outputs, self.outputs = self.outputs, []
        return outputs

    async def answer(self, step: Step, token: int = 5) -> None:
        """One token for everybody, and time for the loop to take it."""
        made = [TokenOutput(token, -0.1, 30)]
        outputs = [SequenceOutput(work.id, work.attempt, 8, made) for work in step.work]
        self.outputs.append(StepOutput(step.number, outputs, [], 40, len(outputs)))
        self.wake()
        await asyncio.sleep(0)

    async def die(self) -> None:
        self.death = ShardDied("played")
        self.wake()
        await asyncio.sleep(0)


class Stage:
    def __init__(self) -> None:
        self.shard = PlayedShard()
        self.pool = Pool(Ledger())
        self.engine = Engine(0, make_target(), self.shard, self.pool)
        self.pool.members.append(self.engine)

    async def submit(self, id: int, **options: object) -> Request:
        request = make_request(id, spec=make_spec(8, 20, **options))
        self.pool.ledger.enter(request)
        self.pool.add(request)
        await asyncio.sleep(0)
        return request


@pytest.fixture
async def stage():
    stage = Stage()
    task = asyncio.create_task(stage.engine.run())
    await until(stage.pool.serving.is_set)
    yield stage
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


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
    assert stage.pool.ledger.live == {}
    await stage.shard.answer(second, token=9)
    assert answer_of(request) == [7]


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
