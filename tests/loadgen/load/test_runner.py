import asyncio
from collections.abc import Iterable, Iterator

import pytest

from loadgen.client.answers import NEVER, Cancel
from loadgen.client.client import Address, Client
from loadgen.client.dialects import Dialect
from loadgen.client.records import Outcome
from loadgen.load.run import Pace, RequestOptions, Run
from loadgen.load.runner import Runner
from loadgen.selftest.server import Behaviour
from loadgen.traffic.workloads import Job
from tests.loadgen.making import QUICK, SERVER_INFO, client_of, synthetic


class Jobs:
    """Conversations of `turns` turns."""

    def __init__(self, turns: int = 1, max_tokens: int = 4, cancel: Cancel = NEVER, think_s: float = 0.0):
        self._turns, self._max_tokens, self._cancel, self._think_s = turns, max_tokens, cancel, think_s
        self.asked_at: list[float] = []

    def draw(self, number: int, at_s: float) -> Job:
        self.asked_at.append(at_s)
        turns = tuple(f"job {number} turn {turn}" for turn in range(self._turns))
        think = (self._think_s,) * (self._turns - 1)
        return Job(number, "test", turns, (self._max_tokens,) * self._turns, "", think, self._cancel)


async def carried_out(jobs: Jobs, pace: Pace, behaviour: Behaviour = QUICK) -> Run:
    async with synthetic(behaviour) as server, client_of(server) as client:
        runner = Runner(
            client, SERVER_INFO, jobs, RequestOptions(dialect=Dialect.TGI, model="synthetic"), pace
        )
        async with asyncio.timeout(30):
            return await runner.carry_out()


def most_at_once(run: Run) -> int:
    starts = [(record.begun, 1) for record in run.records]
    ends = [(record.ended or 0.0, -1) for record in run.records]
    open_now = most = 0
    for _, change in sorted(starts + ends):
        open_now += change
        most = max(most, open_now)
    return most


async def test_a_closed_loop_keeps_its_number_of_streams_and_sends_each_job_once() -> None:
    run = await carried_out(Jobs(), Pace(concurrency=5, num_requests=40))
    assert [record.session for record in sorted(run.records, key=lambda r: r.session)] == list(range(40))
    assert all(record.outcome is Outcome.OK for record in run.records)
    assert most_at_once(run) == 5
    assert not run.is_open_loop


async def test_an_open_loop_does_not_wait_for_a_slow_server() -> None:
    slow = Behaviour(ttft_ms=600, itl_ms=1)
    times = [0.02 * step for step in range(20)]
    run = await carried_out(Jobs(), Pace(times=iter(times)), slow)
    assert [record.intended - run.began for record in run.records] == pytest.approx(times)
    assert most_at_once(run) == 20
    assert run.last_start == pytest.approx(run.began + times[-1])


async def test_latency_counts_from_the_intended_start_also_when_waiting_for_a_place() -> None:
    """One place, answers of some 200 ms, ten requests at once: the last has waited for all before it."""
    server = Behaviour(ttft_ms=100, itl_ms=30, jitter=0)
    run = await carried_out(Jobs(), Pace(times=iter([0.0] * 10), concurrency=1), server)
    assert most_at_once(run) >= 1
    waits = sorted(record.ttft_ms or 0.0 for record in run.records)
    assert waits[-1] > 9 * 190


async def test_the_schedule_of_a_drift_is_asked_with_intended_times() -> None:
    jobs = Jobs()
    await carried_out(jobs, Pace(times=iter([0.0, 0.1, 0.2])))
    assert jobs.asked_at == [0.0, 0.1, 0.2]


async def test_nothing_is_started_after_the_duration() -> None:
    run = await carried_out(Jobs(), Pace(concurrency=2, duration_s=0.3))
    assert run.records
    assert all(record.intended - run.began <= 0.3 for record in run.records)
    assert all(record.outcome is Outcome.OK for record in run.records)


@pytest.mark.parametrize("times", [None, [0.0, 0.01]])
async def test_what_does_not_end_is_cut_when_draining_is_over(times: Iterable[float] | None) -> None:
    slow = Behaviour(ttft_ms=5, itl_ms=200)
    pace = Pace(
        concurrency=None if times else 2,
        times=iter(times) if times else None,
        duration_s=0.2,
        drain_s=0.2,
    )
    run = await carried_out(Jobs(max_tokens=1000), pace, slow)
    assert len(run.records) == 2
    assert {record.outcome for record in run.records} == {Outcome.CANCELLED}


async def test_each_turn_waits_for_the_answer_before_it_and_repeats_it() -> None:
    run = await carried_out(Jobs(turns=3, think_s=0.05), Pace(concurrency=1, num_requests=1))
    first, second, third = run.records
    assert [record.turn for record in run.records] == [0, 1, 2]
    assert first.text.strip() in second.prompt
    assert second.text.strip() in third.prompt
    assert second.intended >= (first.ended or 0) + 0.05


async def test_a_conversation_ends_with_the_first_answer_that_fails() -> None:
    class Failing(Jobs):
        def draw(self, number: int, at_s: float) -> Job:
            return Job(number, "test", ("[fault:reset]", "and then?"), (4, 4), think_s=(0.0,))

    run = await carried_out(Failing(), Pace(concurrency=1, num_requests=1))
    assert [record.outcome for record in run.records] == [Outcome.RESET]


async def test_an_interrupted_run_ends_with_what_it_has() -> None:
    def forever() -> Iterator[float]:
        at = 0.0
        while True:
            yield at
            at += 0.01

    slow = Behaviour(ttft_ms=5, itl_ms=50)
    async with synthetic(slow) as server, client_of(server) as client:
        request_options = RequestOptions(dialect=Dialect.TGI, model="synthetic")
        runner = Runner(client, SERVER_INFO, Jobs(max_tokens=1000), request_options, Pace(times=forever()))

        running = asyncio.create_task(runner.carry_out())
        async with asyncio.timeout(30):
            while len(runner.records) < 6:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
            runner.interrupt()
            run = await running
    assert runner.is_interrupted
    assert len(run.records) >= 6
    assert {record.outcome for record in run.records} == {Outcome.CANCELLED}


async def test_a_closed_loop_does_not_spin_on_a_server_that_says_no() -> None:
    """Half a second of two streams that are told to come back in a second, or that find nobody."""
    refused = await carried_out(Jobs(), Pace(concurrency=2, duration_s=0.5), Behaviour(capacity=0))
    assert [record.outcome for record in refused.records] == [Outcome.REFUSED] * 2
    async with Client(Address("127.0.0.1", 9)) as client:
        request_options = RequestOptions(dialect=Dialect.TGI, model="synthetic")
        runner = Runner(client, SERVER_INFO, Jobs(), request_options, Pace(concurrency=2, duration_s=0.5))
        run = await runner.carry_out()
    assert {record.outcome for record in run.records} == {Outcome.CONNECT}
    assert len(run.records) <= 12
