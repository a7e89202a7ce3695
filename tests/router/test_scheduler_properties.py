"""Whatever happens in whatever order, every request ends once, with the tokens it would have got alone.

Two schedulers share a queue; their shards are real bookkeeping (the simulated runner, in no time) behind
inboxes and outboxes that hold back steps and answers for as long as the test likes.
"""

import asyncio
import tempfile
from collections import Counter, deque

import msgspec
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    MultipleResults,
    RuleBasedStateMachine,
    consumes,
    invariant,
    multiple,
    rule,
)

from router.request import Finished, GenerationFailed, Request, Spec, Status
from router.scheduler import MAX_SHARD_DEATHS, Limits, Scheduler
from router.scoring import Backlog, Reader
from router.waiting import WaitingQueue
from shard.batch import Chunk
from shard.messages import ShardConfig, Step, StepOutput, TokenOutput
from shard.sim import CostModel, SimRunner
from tests.router.fakes import answer_of, expected_answer, make_request, make_spec

POISON = 777
COSTS = CostModel(
    step_ms=0, token_ms=0, sequence_ms=0, context_token_ms=0, kv_bytes_per_token=1,
    mean_answer_tokens=30, fails_on_token=POISON, max_total_tokens=64,
)  # fmt: skip
LIMITS = Limits(max_batch_size=4, max_batch_tokens=12, block_size=4, num_blocks=16)


def costs_file() -> str:
    with tempfile.NamedTemporaryFile(delete=False, suffix=".json") as file:
        file.write(msgspec.json.encode(COSTS))
    return file.name


CONFIG = ShardConfig(
    "sim", device="sim", block_size=4, kv_cache_bytes=LIMITS.num_blocks * 4, cost_model=costs_file()
)


class Shape(msgspec.Struct, frozen=True):
    """A request to be made."""

    num_prompt_tokens: int
    max_new_tokens: int
    priority: int
    ignore_eos: bool
    stops: bool
    is_poisonous: bool

    def spec(self, first: int) -> Spec:
        options = {"priority": self.priority, "ignore_eos": self.ignore_eos}
        spec = make_spec(self.num_prompt_tokens, self.max_new_tokens, first, **options)
        if self.is_poisonous:
            spec.prompt_token_ids[-1] = POISON
        if not self.stops:
            return spec
        answer = expected_answer(spec, COSTS)
        return msgspec.structs.replace(spec, stop=(f"{answer[len(answer) // 2]} ",))


SHAPES = st.builds(
    Shape,
    num_prompt_tokens=st.sampled_from([3, 1, 8, 13, 30]),
    max_new_tokens=st.sampled_from([34, 20, 10, 2, 1]),
    priority=st.integers(0, 2),
    ignore_eos=st.booleans(),
    stops=st.sampled_from([False, False, True]),
    is_poisonous=st.sampled_from([False] * 9 + [True]),
)


class HesitantRunner(SimRunner):
    """Lets some sequences wait at an exit for a step, as a batch with early exits does."""

    def _sample(self, chunk: Chunk) -> list[TokenOutput]:
        sequence = chunk.sequence
        sequence.waits = chunk.samples and not sequence.waits and sequence.num_tokens % 5 == 0
        return [] if sequence.waits else super()._sample(chunk)


class World:
    """One shard as the router sees it: a scheduler, steps on their way there, answers on their way back."""

    def __init__(self, index: int, queue: WaitingQueue, backlog: Backlog):
        self.index = index
        self.queue = queue
        self.backlog = backlog
        self.revive()

    def revive(self) -> None:
        reader = Reader(self.backlog, LIMITS.block_size, LIMITS.num_blocks) if self.index else None
        self.scheduler = Scheduler(self.index, LIMITS, self.queue, reader)
        self.runner = HesitantRunner(CONFIG)
        self.inbox: deque[Step] = deque()
        self.outbox: deque[StepOutput] = deque()

    def schedule(self, now: float) -> Step | None:
        step = self.scheduler.schedule(now) if self.scheduler.num_in_flight < 2 else None
        if step is not None:
            self.inbox.append(step)
        return step

    def run(self) -> bool:
        """Run the oldest step; False if the shard died of it."""
        try:
            self.outbox.append(self.runner.run(self.inbox.popleft()))
        except RuntimeError:
            return False
        return True


class Interleavings(RuleBasedStateMachine):
    live = Bundle("live")

    def __init__(self) -> None:
        super().__init__()
        self.queue = WaitingQueue()
        self.backlog = Backlog(rate=1.0)  # every answer is read again, by the second shard
        self.worlds = [World(index, self.queue, self.backlog) for index in range(2)]
        self.requests: list[Request] = []
        self.num_deaths_met: dict[int, int] = {}
        self.stopped_at: dict[int, int] = {}
        self.now = 0.0

    @rule(target=live, shapes=st.lists(SHAPES, min_size=1, max_size=4))
    def arrive(self, shapes: list[Shape]) -> MultipleResults[Request]:
        return multiple(*[self.submit(shape) for shape in shapes])

    def submit(self, shape: Shape) -> Request:
        id = len(self.requests)
        spec = shape.spec(first=1000 * (id + 1))
        request = make_request(id, self.now, spec)
        self.requests.append(request)
        self.queue.add(request)
        self.now += 1.0
        return request

    @rule(request=consumes(live))
    def abort(self, request: Request) -> None:
        if request.status is not Status.FINISHED:
            removed = [self.queue.remove(request)] + [world.scheduler.drop(request) for world in self.worlds]
            assert removed.count(True) == 1
            request.fail(GenerationFailed("aborted", "cancelled", 499), self.now)

    @rule(index=st.integers(0, 1))
    def schedule(self, index: int) -> None:
        step = self.worlds[index].schedule(self.now)
        if step is not None:
            assert sum(work.num_tokens for work in step.work) <= LIMITS.max_batch_tokens
            assert len(step.work) <= LIMITS.max_batch_size
            assert len({work.id for work in step.work}) == len(step.work)
            assert {new.id for new in step.new} <= {work.id for work in step.work}
            assert all(work.num_tokens > 0 for work in step.work)

    @rule(index=st.integers(0, 1))
    def run(self, index: int) -> None:
        world = self.worlds[index]
        if world.inbox and not world.run():
            self.die(index)

    @rule(index=st.integers(0, 1))
    def deliver(self, index: int) -> None:
        world = self.worlds[index]
        if not world.outbox:
            return
        update = world.scheduler.update(world.outbox.popleft())
        for delivery in update.deliveries:
            over = delivery.request.put(delivery.tokens, delivery.finish, self.now)
            if over and delivery.finish is None:
                assert world.scheduler.drop(delivery.request)
            if over:
                self.backlog.offer(delivery.request)
        if update.read is not None:
            assert [score.choice for score in update.read.scores] == answer_of(update.read.request)

    @rule(index=st.integers(0, 1))
    def die(self, index: int) -> None:
        present = list(self.worlds[index].scheduler._running.values())
        for request in present:
            self.num_deaths_met[request.id] = self.num_deaths_met.get(request.id, 0) + 1
        for request in self.worlds[index].scheduler.lose():
            assert self.num_deaths_met[request.id] >= MAX_SHARD_DEATHS
            request.fail(GenerationFailed("a shard died twice"), self.now)
        self.worlds[index].revive()

    @rule(index=st.integers(0, 1), num_steps=st.integers(1, 12))
    def go_on(self, index: int, num_steps: int) -> None:
        for _ in range(num_steps):
            self.schedule(index)
            self.run(index)
            self.deliver(index)

    @invariant()
    def every_request_is_in_exactly_one_place(self) -> None:
        for request in self.requests:
            places = [request in self.queue]
            places += [request.id in world.scheduler._running for world in self.worlds]
            places += [request.status is Status.FINISHED]
            assert places.count(True) == 1

    @invariant()
    def what_is_in_flight_is_known_to_the_token(self) -> None:
        for world in self.worlds:
            wished: Counter[tuple[int, int]] = Counter()
            for step in world.scheduler._in_flight:
                wished.update({(work.id, work.attempt): work.num_tokens for work in step.work})
            for request in world.scheduler._running.values():
                assert request.num_in_flight_tokens == wished[request.id, request.attempt]

    @invariant()
    def the_queue_counts_right(self) -> None:
        waiting = [request for request in self.requests if request in self.queue]
        assert len(self.queue) == len(waiting)
        assert self.queue.num_tokens == sum(request.num_tokens for request in waiting)

    @invariant()
    def tokens_come_in_order_without_gap_or_duplicate(self) -> None:
        for request in self.requests:
            answer = answer_of(request)
            assert answer == expected_answer(request.spec, COSTS)[: len(answer)]

    def teardown(self) -> None:
        """Left alone, everything ends, and the shards are empty."""
        for _ in range(3000):
            for index in range(2):
                self.schedule(index)
            if not any(world.scheduler.num_in_flight for world in self.worlds):
                break
            for index in range(2):
                self.run(index)
                self.deliver(index)
        for world in self.worlds:
            assert len(world.runner._table) == 0
            assert world.runner._table.pool.num_free == LIMITS.num_blocks
        assert asyncio.run(self._check_ends()) is None

    async def _check_ends(self) -> None:
        for request in self.requests:
            assert request.status is Status.FINISHED
            ends = [event for event in request._events if isinstance(event, Finished | GenerationFailed)]
            assert len(ends) == 1
            if isinstance(ends[0], Finished):
                text = "".join(f"{id} " for id in expected_answer(request.spec, COSTS))
                stop = request.spec.stop[0] if request.spec.stop else None
                assert ends[0].text == (text if stop is None else text[: text.index(stop) + len(stop)])


Interleavings.TestCase.settings = settings(
    max_examples=150, stateful_step_count=50, deadline=None, suppress_health_check=list(HealthCheck)
)
TestInterleavings = Interleavings.TestCase
