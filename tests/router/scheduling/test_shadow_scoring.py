"""Answers are read again at full depth: by what users leave over, last to start and first to go."""

import asyncio
from pathlib import Path

import pytest

from router.catalog.served_model import ServedModel
from router.scheduling.admission import AdmissionQuota
from router.scheduling.request import Request, Status
from router.scheduling.scheduler import Limits, Scheduler
from router.scheduling.shadow_scoring import MAX_WAITING, ScoreQueue, is_chosen
from router.scheduling.waiting_queue import Lane, WaitingQueue
from shard.messages import FinishReason, Score, SequenceOutput, Step, StepOutput, TokenOutput
from shard.sim.sim_runner import CostModel
from tests.router.fakes import answer_of, make_request, make_served_model, make_spec
from tests.router.sim_serving import outcomes, shard_processes, simulated, until

LIMITS = Limits(max_batch_size=8, max_batch_tokens=64, block_size=4)
SERVED_MODEL = make_served_model(block_size=4, num_blocks=100)


def finished(id: int, num_prompt_tokens: int = 8, num_tokens: int = 4) -> Request:
    request = make_request(id, num_prompt_tokens=num_prompt_tokens)
    request.start(0, SERVED_MODEL, 0.0)
    request.put([TokenOutput(5, -0.1, 30)] * num_tokens, FinishReason.LENGTH, 0.0)
    return request


class Desk:
    """A scheduler that reads, and its shard played by hand."""

    def __init__(self, *answers: Request, served_model: ServedModel = SERVED_MODEL):
        self.score_queue = ScoreQueue(rate=1.0)
        for answer in answers:
            assert self.score_queue.offer(answer)
        self.queue = WaitingQueue()
        self.scheduler = Scheduler(0, LIMITS, served_model, self.queue, self.score_queue)

    def step(self, quota: AdmissionQuota | None = None) -> Step:
        step = self.scheduler.schedule(0.0, quota or AdmissionQuota())
        assert step is not None
        return step

    def answer(self, step: Step, *outputs: SequenceOutput, preempted: tuple[int, ...] = ()):
        lost = [(id, 0) for id in preempted]
        return self.scheduler.update(StepOutput(step.number, list(outputs), lost, 100, 0))


def test_an_answer_travels_as_part_of_the_prompt_and_comes_back_with_its_scores() -> None:
    request = finished(1)
    desk = Desk(request)
    first = desk.step()
    [new] = first.new
    assert (new.token_ids, new.num_prompt_tokens) == (request.token_ids, 8)
    assert (new.scores, new.max_new_tokens, new.sampling.seed) == (True, 0, request.spec.sampling.seed)
    second = desk.step()
    assert [work.num_tokens for work in first.work + second.work] == [8, 4]
    scores = [Score(5, -0.5), Score(6, -0.5), Score(5, -0.5), Score(5, -0.5)]
    assert desk.answer(first, SequenceOutput(new.id, 0, 8, scores=scores[:1])).scored is None
    done = SequenceOutput(new.id, 0, 12, scores=scores[1:], finish=FinishReason.LENGTH)
    read = desk.answer(second, done).scored
    assert read is not None
    assert (read.request, read.scores) == (request, scores)


def test_a_reading_is_a_small_part_of_a_step_and_gives_no_tokens_to_anyone() -> None:
    desk = Desk(finished(1, num_prompt_tokens=50))
    desk.queue.add(make_request(2, num_prompt_tokens=20))
    step = desk.step()
    assert [work.num_tokens for work in step.work] == [20, 8]
    reading = step.work[1].id
    update = desk.answer(step, SequenceOutput(reading, 0, 8, scores=[Score(1, -1.0)]))
    assert update.deliveries == []
    assert desk.scheduler.num_running == 1


def test_blocks_are_taken_from_a_reading_before_any_request() -> None:
    desk = Desk(finished(1))
    assert desk.step().new[0].id > 2**32


def test_nothing_is_read_while_a_request_waits() -> None:
    desk = Desk(finished(1))
    reading = desk.step().new[0].id
    for id in range(2, 12):  # more than the batch holds
        desk.queue.add(make_request(id))
    step = desk.step()
    assert len(desk.queue) > 0
    assert (reading, 0) in step.drop
    assert reading not in {work.id for work in step.work}


def test_nothing_is_read_by_a_shard_that_drains() -> None:
    desk = Desk(finished(1))
    assert desk.scheduler.schedule(0.0, AdmissionQuota(lanes=(Lane.RETURNED, Lane.SUSPECT))) is None


def test_a_full_batch_reads_nothing() -> None:
    desk = Desk(finished(1))
    for id in range(2, 10):
        desk.queue.add(make_request(id, num_prompt_tokens=1))
    assert len(desk.step().work) == LIMITS.max_batch_size


SHALLOW = make_served_model(block_size=4, num_blocks=100, depth=10, can_score=True)


def test_a_shard_that_reads_missing_layers_is_asked_to_go_on_until_it_is_done() -> None:
    desk = Desk(finished(1), served_model=SHALLOW)
    steps = [desk.step() for _ in range(2)]
    reading = steps[0].new[0].id
    for _ in range(5):
        assert desk.answer(steps.pop(0), SequenceOutput(reading, 0, 12)).scored is None
        steps.append(desk.step())
    assert [(work.id, work.num_tokens) for work in steps[-1].work] == [(reading, 1)]
    done = SequenceOutput(reading, 0, 12, scores=[Score(5, -0.5)] * 4, finish=FinishReason.LENGTH)
    assert desk.answer(steps[0], done).scored is not None
    desk.answer(steps[1])
    assert desk.scheduler.schedule(0.0) is None


def test_it_goes_on_beside_a_full_batch_but_not_in_the_way_of_blocks() -> None:
    desk = Desk(finished(1), served_model=SHALLOW)
    reading = desk.step().new[0].id
    for id in range(2, 12):  # more than the batch holds
        desk.queue.add(make_request(id))
    step = desk.step()
    assert step.drop == []
    desk = Desk(finished(1), served_model=SHALLOW)
    reading = desk.step().new[0].id
    for id in range(2, 5):  # three of them do not fit
        desk.queue.add(make_request(id, num_prompt_tokens=200))
    assert (reading, 0) in desk.step().drop


def test_a_preempted_reading_is_forgotten() -> None:
    desk = Desk(finished(1))
    first, second = desk.step(), desk.step()
    reading = first.new[0].id
    assert desk.answer(first, preempted=(reading,)).preempted == []
    assert desk.answer(second).scored is None
    assert desk.scheduler.schedule(0.0) is None


def test_an_answer_that_would_fill_the_cache_is_not_read() -> None:
    too_long = finished(1, num_prompt_tokens=SERVED_MODEL.ready.num_blocks * 2 + 8)
    desk = Desk(too_long, finished(2))
    assert len(desk.step().new[0].token_ids) == 12


def test_few_answers_wait_to_be_read() -> None:
    desk = Desk(*[finished(id) for id in range(3 * MAX_WAITING)])
    assert len(desk.score_queue.waiting) == MAX_WAITING
    assert desk.score_queue.waiting[-1].id == 3 * MAX_WAITING - 1


@pytest.mark.parametrize("rate", [0.0, 0.01, 0.2, 1.0])
def test_the_share_is_as_asked_and_the_same_in_every_run(rate: float) -> None:
    chosen = [id for id in range(20_000) if is_chosen(id, rate)]
    assert len(chosen) == pytest.approx(20_000 * rate, abs=60)
    assert chosen == [id for id in range(20_000) if is_chosen(id, rate)]


async def test_simulated_answers_agree_with_themselves(tmp_path: Path) -> None:
    async with simulated(tmp_path, score_rate=1.0) as sim:
        requests = sim.submit(*[make_spec(first=1000 * i, max_new_tokens=5) for i in range(1, 6)])
        await outcomes(requests)
        await until(lambda: len(sim.record.scored) == 5)
        for request, scores in sim.record.scored:
            assert [score.choice for score in scores] == answer_of(request)
        report = sim.dispatcher.state().agreement
        assert report.overall is not None
        assert (report.sequences, report.overall.tokens, report.overall.agreement) == (5, 25, 1.0)
        assert list(report.by_exit) == [30]
        assert sim.dispatcher.state().running == 0
        assert sim.record.events.count(("finished", requests[0].id)) == 1
        await until(lambda: sim.shards()[0].num_free_blocks == sim.shards()[0].num_blocks)


async def test_shards_without_all_layers_read_nothing(tmp_path: Path) -> None:
    async with simulated(tmp_path, score_rate=1.0, num_layers=10) as sim:
        await outcomes(sim.submit(make_spec(max_new_tokens=5)))
        await asyncio.sleep(0.05)
        assert sim.record.scored == []
        assert sim.dispatcher.state().agreement.overall is None


async def test_a_reading_does_not_survive_its_shard_and_nobody_notices(tmp_path: Path) -> None:
    async with simulated(tmp_path, CostModel(step_ms=20.0), score_rate=1.0) as sim:
        [request] = sim.submit(make_spec(num_prompt_tokens=2000, max_new_tokens=2))
        await outcomes([request])
        [process] = shard_processes()
        process.kill()
        await until(lambda: bool(sim.record.deaths))
        await sim.all_serve()
        assert sim.record.scored == []
        assert request.status is Status.FINISHED
        spec = make_spec(max_new_tokens=3)
        assert await outcomes(sim.submit(spec)) != []
        await until(lambda: len(sim.record.scored) == 1)
