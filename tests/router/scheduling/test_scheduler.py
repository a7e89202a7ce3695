"""Schedule and update, driven by hand: what a step holds, and what becomes of its answer."""

import sys
from types import FrameType

import pytest

from router.scheduling.admission import AdmissionQuota
from router.scheduling.request import Request, Status
from router.scheduling.scheduler import Limits, Scheduler
from router.scheduling.waiting_queue import Lane, WaitingQueue
from shard.messages import FinishReason, OlderReport, SequenceOutput, Step, StepOutput, TokenOutput
from tests.router.fakes import answer_of, make_request, make_served_model

LIMITS = Limits(max_batch_size=8, max_batch_tokens=32, block_size=4)


class Bench:
    """A scheduler, and a shard played by hand, which computes everything asked and makes token 5."""

    def __init__(self, limits: Limits = LIMITS, num_blocks: int = 1000):
        self.queue = WaitingQueue()
        self.served_model = make_served_model(num_blocks=num_blocks)
        self.scheduler = Scheduler(0, limits, self.served_model, self.queue)
        self.num_free_blocks = num_blocks
        self.older: list[OlderReport] = []
        self.requests: dict[int, Request] = {}
        self.known: dict[int, list[int]] = {}  # id -> [attempt, tokens, computed]

    def add(self, *requests: Request) -> None:
        for request in requests:
            self.requests[request.id] = request
            self.queue.add(request)

    def schedule(self, quota: AdmissionQuota | None = None) -> dict[int, int] | None:
        """Tokens asked for in the next step, by id."""
        self.step = self.scheduler.schedule(0.0, quota) if quota else self.scheduler.schedule(0.0)
        return None if self.step is None else {work.id: work.num_tokens for work in self.step.work}

    def answer(
        self, step: Step, finish: dict[int, FinishReason] | None = None, preempted: tuple[int, ...] = ()
    ) -> list[int]:
        """Answer a step in full, deliver it, and name the requests that got tokens."""
        for id, _ in step.drop:
            self.known.pop(id, None)
        for new in step.new:
            self.known[new.id] = [new.attempt, len(new.token_ids), 0]
        done = [work for work in step.work if work.id in self.known and work.id not in preempted]
        outputs = [self._do(work.id, work.num_tokens, finish or {}) for work in done]
        lost = [(id, self.known.pop(id)[0]) for id in preempted]
        output = StepOutput(
            step.number, outputs, lost, self.num_free_blocks, 0, epoch=len(self.older), older=self.older
        )
        update = self.scheduler.update(output)
        for delivery in update.deliveries:
            delivery.request.put(delivery.made.tokens, delivery.made.finish, 0.0)
        return [delivery.request.id for delivery in update.deliveries if delivery.made.tokens]

    def answer_of_two_models(
        self, step: Step, num_free_of_older: int, preempted: tuple[int, ...] = ()
    ) -> None:
        """As `answer`, of a shard on which the model of epoch 0 was replaced by that of epoch 1."""
        self.older = [OlderReport(0, 2, num_free_of_older)]
        self.answer(step, preempted=preempted)

    def _do(self, id: int, num_tokens: int, finish: dict[int, FinishReason]) -> SequenceOutput:
        state = self.known[id]
        attempt, known, computed = state
        computed = min(known, computed + num_tokens)
        tokens = [TokenOutput(5, -0.1, 30)] if computed == known else []
        state[1:] = [known + len(tokens), computed]
        reason = finish.get(id)
        if reason is not None:
            del self.known[id]
        return SequenceOutput(id, attempt, computed, tokens, finish=reason)

    def run(self, num_steps: int) -> list[dict[int, int]]:
        """So many steps, each answered before the next is formed."""
        wishes: list[dict[int, int]] = []
        for _ in range(num_steps):
            wishes.append(self.schedule())
            self.answer(self.step)
        return wishes


def test_nothing_to_do_is_no_step() -> None:
    assert Bench().schedule() is None


def test_a_prompt_travels_once_and_then_decodes_token_by_token() -> None:
    bench = Bench()
    bench.add(make_request(0, num_prompt_tokens=10))
    assert bench.schedule() == {0: 10}
    assert [new.token_ids for new in bench.step.new] == [list(range(1000, 1010))]
    bench.answer(bench.step)
    assert bench.schedule() == {0: 1}
    assert bench.step.new == []
    assert bench.requests[0].status is Status.RUNNING


def test_a_step_is_formed_while_the_one_before_runs() -> None:
    bench = Bench()
    bench.add(make_request(0, num_prompt_tokens=10, max_new_tokens=3))
    assert bench.schedule() == {0: 10}
    first = bench.step
    assert bench.schedule() == {0: 1}
    second = bench.step
    bench.answer(first)
    assert bench.schedule() == {0: 1}
    third = bench.step
    assert bench.schedule() is None  # the three tokens that it may have are on their way
    bench.answer(second)
    bench.answer(third, finish={0: FinishReason.LENGTH})
    assert answer_of(bench.requests[0]) == [5, 5, 5]
    assert bench.scheduler.num_running == 0


def test_a_sequence_that_waits_at_an_exit_is_asked_for_until_its_token_is_made() -> None:
    bench = Bench()
    bench.add(make_request(0, num_prompt_tokens=10, max_new_tokens=1))
    bench.schedule()
    for number in (1, 2):  # all is computed as far as the first exit, and there is no token
        assert bench.schedule() is None
        bench.scheduler.update(StepOutput(number, [SequenceOutput(0, 0, 10)], [], 1000, 1))
        assert bench.schedule() == {0: 1}


def test_a_long_prompt_is_computed_in_chunks_of_the_budget() -> None:
    bench = Bench()
    bench.add(make_request(0, num_prompt_tokens=70))
    assert bench.run(4) == [{0: 32}, {0: 32}, {0: 6}, {0: 1}]


def test_decoding_streams_are_in_every_step_beside_prefill() -> None:
    bench = Bench()
    bench.add(make_request(0, num_prompt_tokens=4, max_new_tokens=50))
    bench.run(1)
    bench.add(make_request(1, num_prompt_tokens=70))
    assert bench.run(3) == [{0: 1, 1: 31}, {0: 1, 1: 31}, {0: 1, 1: 8}]


def test_a_long_prompt_leaves_half_a_step_to_short_ones() -> None:
    bench = Bench()
    bench.add(make_request(0, num_prompt_tokens=300))
    bench.run(1)
    bench.add(make_request(1, num_prompt_tokens=10), make_request(2, num_prompt_tokens=6))
    assert bench.run(2) == [{0: 16, 1: 10, 2: 6}, {0: 30, 1: 1, 2: 1}]


def test_several_long_prompts_do_not_shut_out_a_short_one() -> None:
    bench = Bench()
    bench.add(make_request(0, num_prompt_tokens=300), make_request(1, num_prompt_tokens=300))
    bench.run(2)
    bench.add(make_request(2, num_prompt_tokens=10))
    assert bench.run(1) == [{0: 22, 2: 10}]


def test_equal_prompts_are_computed_one_after_the_other() -> None:
    bench = Bench()
    bench.add(*(make_request(id, num_prompt_tokens=30) for id in range(3)))
    assert bench.run(3) == [{0: 30, 1: 2}, {0: 1, 1: 28, 2: 3}, {0: 1, 1: 1, 2: 27}]


def test_prefill_gets_a_share_where_streams_could_take_the_whole_step() -> None:
    bench = Bench(Limits(max_batch_size=8, max_batch_tokens=4, block_size=4))
    bench.add(*(make_request(id, num_prompt_tokens=1, max_new_tokens=100) for id in range(4)))
    bench.run(2)
    bench.add(make_request(4, num_prompt_tokens=3))
    wishes = bench.run(8)
    assert all(sum(options.values()) == 4 for options in wishes)
    assert [options.get(4) for options in wishes[:3]] == [1, 1, 1]
    turns = [sum(id in options for options in wishes) for id in range(4)]
    assert max(turns) - min(turns) <= 1


def test_the_batch_is_never_larger_than_its_limit() -> None:
    bench = Bench()
    bench.add(*(make_request(id, num_prompt_tokens=1, max_new_tokens=100) for id in range(20)))
    bench.run(3)
    assert (bench.scheduler.num_running, len(bench.queue)) == (8, 12)


def test_a_request_starts_only_with_room_for_it_and_for_the_growth_of_the_others() -> None:
    bench = Bench(Limits(max_batch_size=8, max_batch_tokens=64, block_size=4), num_blocks=10)
    bench.add(make_request(0, num_prompt_tokens=16, max_new_tokens=100))
    bench.num_free_blocks = 6
    bench.run(1)
    bench.add(make_request(1, num_prompt_tokens=13))
    assert bench.schedule() == {0: 1}  # 4 blocks, 1 that request 0 needs now, 1 each to grow: 7
    bench.num_free_blocks = 7
    bench.answer(bench.step)
    assert bench.schedule() == {0: 1, 1: 13}


def test_an_empty_shard_takes_a_request_whatever_it_last_said_of_its_blocks() -> None:
    bench = Bench()
    bench.add(make_request(0, max_new_tokens=2))
    bench.num_free_blocks = 0
    bench.run(1)
    bench.scheduler.drop(bench.requests[0])
    bench.add(make_request(1, num_prompt_tokens=9))
    assert bench.schedule() == {1: 9}
    assert bench.step.drop == [(0, 0)]


def test_a_preempted_request_goes_to_the_front_and_starts_again_with_its_tokens() -> None:
    bench = Bench()
    bench.add(make_request(0, num_prompt_tokens=4), make_request(1, num_prompt_tokens=4))
    bench.run(3)
    bench.add(make_request(2, priority=5))
    bench.schedule(AdmissionQuota(max_outstanding_tokens=-1))
    running = bench.step
    bench.schedule(AdmissionQuota(max_outstanding_tokens=-1))
    stale = bench.step
    assert bench.answer(running, preempted=(1,)) == [0]
    preempted = bench.requests[1]
    assert (preempted.status, preempted.attempt, preempted.num_preemptions) == (Status.WAITING, 1, 1)
    assert bench.queue.head() is preempted
    bench.schedule()
    assert [(new.id, new.attempt, len(new.token_ids)) for new in bench.step.new] == [(1, 1, 7), (2, 0, 8)]
    assert bench.answer(stale) == [0]  # the wish for the old attempt came to nothing
    assert preempted.num_in_flight_tokens == 7
    assert bench.answer(bench.step) == [0, 1, 2]
    assert answer_of(preempted) == [5, 5, 5, 5]


def test_an_abort_rides_on_the_next_step_even_when_nothing_else_does() -> None:
    bench = Bench()
    bench.add(make_request(0))
    bench.run(2)
    assert bench.scheduler.drop(bench.requests[0])
    assert not bench.scheduler.drop(bench.requests[0])
    assert bench.schedule() == {}
    assert bench.step.drop == [(0, 0)]
    assert bench.schedule() is None


def test_what_comes_for_an_ended_request_is_left_out() -> None:
    bench = Bench()
    bench.add(make_request(0))
    bench.run(1)
    bench.schedule()
    bench.scheduler.drop(bench.requests[0])
    assert bench.answer(bench.step) == []
    assert answer_of(bench.requests[0]) == [5]


def test_an_answer_out_of_turn_is_refused() -> None:
    bench = Bench()
    bench.add(make_request(0, num_prompt_tokens=40))
    bench.schedule()
    bench.schedule()
    with pytest.raises(ValueError, match="step 2"):
        bench.scheduler.update(StepOutput(2, [], [], 10, 1))


def test_a_shard_with_more_work_than_its_share_starts_nothing() -> None:
    bench = Bench()
    bench.add(make_request(0), make_request(1))
    assert bench.schedule(AdmissionQuota(max_outstanding_tokens=0)) == {0: 8}
    assert bench.scheduler.num_outstanding_tokens == 16  # the prompt, and as much is expected as an answer
    bench.answer(bench.step)
    assert bench.schedule(AdmissionQuota(max_outstanding_tokens=8)) == {0: 1, 1: 8}


def test_a_draining_shard_takes_only_what_has_begun() -> None:
    bench = Bench()
    bench.add(make_request(0), make_request(1))
    begun = make_request(2)
    begun.start(1, bench.served_model, 0.0)
    begun.start_over()
    bench.add(begun)
    assert bench.schedule(AdmissionQuota(lanes=(Lane.RETURNED, Lane.SUSPECT))) == {2: 8}


def test_after_a_death_every_running_request_waits_again_and_the_second_death_condemns() -> None:
    bench = Bench()
    bench.add(make_request(0), make_request(1))
    bench.run(2)
    bench.schedule()
    assert bench.scheduler.lose() == []
    first, second = bench.requests.values()
    assert [(r.status, r.attempt, r.num_shard_deaths) for r in (first, second)] == [
        (Status.WAITING, 1, 1)
    ] * 2
    bench.known.clear()
    bench.scheduler = Scheduler(0, LIMITS, bench.served_model, bench.queue)
    assert bench.run(2) == [{0: 10}, {0: 1, 1: 10}]  # no two suspects in one step
    bench.schedule()
    assert bench.scheduler.lose() == [first, second]
    assert len(bench.queue) == 0


def test_the_suspect_alone_is_blamed_for_the_second_death() -> None:
    bench = Bench()
    bench.add(make_request(0), make_request(1), make_request(2))
    bench.run(2)
    bench.schedule()
    bench.scheduler.lose()
    bench.known.clear()
    bench.scheduler = Scheduler(0, LIMITS, bench.served_model, bench.queue)
    bench.add(make_request(3))
    bench.run(1)  # 0 and the fresh one start
    assert bench.schedule() == {0: 1, 3: 1, 1: 10}
    assert bench.scheduler.lose() == [bench.requests[1]]
    assert [bench.requests[id].num_shard_deaths for id in range(4)] == [1, 2, 1, 0]
    assert [bench.requests[id] in bench.queue for id in range(4)] == [True, False, True, True]


def test_the_blame_lies_in_the_oldest_step_without_an_answer() -> None:
    bench = Bench()
    bench.add(make_request(0))
    bench.run(1)
    bench.schedule()
    bench.add(make_request(1))
    assert bench.schedule() == {0: 1, 1: 8}
    bench.scheduler.lose()
    assert [(r.num_shard_deaths, r.is_suspect) for r in bench.requests.values()] == [(1, True), (0, False)]


def test_suspects_are_tried_in_successive_steps_without_waiting_for_answers() -> None:
    bench = Bench()
    bench.add(make_request(0, num_prompt_tokens=40), make_request(1), make_request(2))
    bench.run(4)
    bench.schedule()
    bench.scheduler.lose()
    bench.known.clear()
    bench.scheduler = Scheduler(0, LIMITS, bench.served_model, bench.queue)
    assert bench.schedule() == {0: 32}
    first = bench.step
    assert bench.schedule() == {0: 11}  # its trial goes on
    second = bench.step
    bench.answer(first)
    assert bench.schedule() == {0: 1, 1: 11}
    bench.answer(second)
    assert bench.schedule() == {0: 1, 1: 1, 2: 11}
    assert bench.scheduler.lose() == [bench.requests[1]]


def test_who_waits_for_room_on_an_older_model_is_in_nobodys_way() -> None:
    bench = Bench()
    bench.add(make_request(0, num_prompt_tokens=4), make_request(1, num_prompt_tokens=4))
    bench.run(2)
    newer = make_served_model(1, depth=10, version="v1-10", num_blocks=1000)
    bench.scheduler.adopt(newer, LIMITS)
    bench.add(make_request(2))
    bench.scheduler.is_holding = True
    bench.schedule()
    bench.answer_of_two_models(bench.step, num_free_of_older=0, preempted=(1,))
    assert bench.schedule() == {0: 1}
    bench.scheduler.is_holding = False
    bench.answer_of_two_models(bench.step, num_free_of_older=0)
    assert bench.schedule() == {0: 1, 2: 8}  # 1 waits for its own model, whose blocks are taken
    assert [(new.id, new.epoch) for new in bench.step.new] == [(2, 1)]
    bench.answer_of_two_models(bench.step, num_free_of_older=100)
    assert bench.schedule() == {1: 6, 0: 1, 2: 1}
    assert [(new.id, new.epoch) for new in bench.step.new] == [(1, 0)]


def test_the_cost_of_a_step_does_not_depend_on_how_many_wait() -> None:
    def num_calls(num_waiting: int) -> int:
        bench = Bench()
        bench.add(*(make_request(id, num_prompt_tokens=2, max_new_tokens=100) for id in range(num_waiting)))
        bench.run(10)
        calls = 0

        def count(frame: FrameType, event: str, argument: object) -> None:
            nonlocal calls
            calls += event.endswith("call")

        sys.setprofile(count)
        bench.run(20)
        sys.setprofile(None)
        return calls

    assert num_calls(5_000) == pytest.approx(num_calls(20), rel=0.01)  # the collector calls too
