"""Whatever happens in whatever order, every request ends once, with the tokens it would have got alone.

Shards die, memory runs out, models change their depth meanwhile and those that run are moved or not.

Two schedulers share a queue; their shards are real bookkeeping (the simulated runner, in no time) behind
inboxes and outboxes that hold back steps and answers for as long as the test likes.
"""

import asyncio
import tempfile
from collections import Counter, deque
from collections.abc import Callable
from itertools import pairwise

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

from router.catalog.served_model import ServedModel, Target
from router.scheduling.request import Finished, GenerationFailed, Request, Spec, Status
from router.scheduling.scheduler import MAX_SHARD_DEATHS, Limits, Scheduler
from router.scheduling.shadow_scoring import ScoreQueue
from router.scheduling.waiting_queue import WaitingQueue
from shard.clock import VirtualClock
from shard.engine.sequence_table import Chunk
from shard.messages import (
    Commit,
    Committed,
    Prepare,
    Prepared,
    ShardConfig,
    Step,
    StepOutput,
    SwapFailed,
    TokenOutput,
)
from shard.served_models import ServedModels
from shard.sim.sim_runner import CostModel, SimLoader, SimRunner
from tests.router.fakes import TOKENIZER, answer_of, expected_answer, make_request, make_spec

POISON = 777
COSTS = CostModel(
    step_ms=0, token_ms=0, sequence_ms=0, context_token_ms=0, kv_bytes_per_token=1,
    mean_answer_tokens=30, fails_on_token=POISON, max_total_tokens=64, layer_bytes=0, base_bytes=0,
)  # fmt: skip
LIMITS = Limits(max_batch_size=4, max_batch_tokens=12, block_size=4)
NUM_BLOCKS = 24
DEPTHS = (30, 20, 10)  # a swap changes the depth, which changes what a block costs and no token


def costs_file() -> str:
    with tempfile.NamedTemporaryFile(delete=False, suffix=".json") as file:
        file.write(msgspec.json.encode(COSTS))
    return file.name


CONFIG = ShardConfig(
    "sim", device="sim", block_size=4, kv_cache_bytes=NUM_BLOCKS * 4, cost_model=costs_file()
)


def target_at(depth: int) -> Target:
    return Target("sim", msgspec.structs.replace(CONFIG, num_layers=depth), TOKENIZER)


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

    def sample(self, chunk: Chunk) -> list[TokenOutput]:
        sequence = chunk.sequence
        sequence.waits = chunk.samples and not sequence.waits and sequence.num_tokens % 5 == 0
        return [] if sequence.waits else super().sample(chunk)


class HesitantLoader(SimLoader):
    """Makes such runners, in no time."""

    def first(self, config: ShardConfig) -> tuple[SimRunner, int]:
        runner = HesitantRunner(config, VirtualClock())
        return runner, runner.max_blocks * runner.block_bytes

    def beside(self, config: ShardConfig, total_bytes: int, is_wanted: Callable[[], bool]) -> SimRunner:
        return HesitantRunner(config, VirtualClock(), total_bytes)


class World:
    """One shard as the router sees it: a scheduler, what is on its way there, answers on their way back."""

    def __init__(self, index: int, queue: WaitingQueue, score_queue: ScoreQueue):
        self.index = index
        self.queue = queue
        self.score_queue = score_queue if index else None
        self.target = target_at(DEPTHS[0])
        self.revive()

    def revive(self) -> None:
        self.shard = ServedModels(self.target.config, HesitantLoader(), VirtualClock())
        served_model = ServedModel(0, self.target, self.shard.ready())
        self.scheduler = Scheduler(self.index, LIMITS, served_model, self.queue, self.score_queue)
        self.inbox: deque[Step | Commit] = deque()
        self.outbox: deque[StepOutput | Committed | SwapFailed] = deque()
        self.offered: list[Target] = []

    def schedule(self, now: float) -> Step | None:
        step = self.scheduler.schedule(now) if self.scheduler.num_in_flight < 2 else None
        if step is not None:
            self.inbox.append(step)
        assert self.scheduler.take_unfit() == []
        return step

    def run(self) -> bool:
        """Carry out what came first; False if the shard died of it."""
        match self.inbox.popleft():
            case Step() as step:
                try:
                    self.outbox.append(self.shard.run(step))
                except RuntimeError:
                    return False
            case Commit() as commit:
                self.outbox.append(self.shard.commit(commit))
        return True

    def begin_swap(self, depth: int) -> None:
        """Prepare another depth, and have it committed in the order of steps."""
        self.offered.append(target_at(depth))
        epoch = len(self.offered)
        assert isinstance(self.shard.prepare(Prepare(epoch, self.offered[-1].config)), Prepared)
        self.inbox.append(Commit(epoch))
        self.scheduler.is_holding = True

    def end_swap(self, answer: Committed | SwapFailed) -> None:
        self.scheduler.is_holding = False
        if isinstance(answer, SwapFailed):
            self.shard.discard(answer.epoch)
            return
        self.target = self.offered[answer.epoch - 1]
        self.scheduler.adopt(ServedModel(answer.epoch, self.target, answer.ready), LIMITS, answer.joined)


class Interleavings(RuleBasedStateMachine):
    live = Bundle("live")

    def __init__(self) -> None:
        super().__init__()
        self.queue = WaitingQueue()
        self.score_queue = ScoreQueue(rate=1.0)  # every answer is read again, by the second shard
        self.worlds = [World(index, self.queue, self.score_queue) for index in range(2)]
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
        match world.outbox.popleft() if world.outbox else None:
            case StepOutput() as output:
                self.take(world, output)
            case Committed() | SwapFailed() as answer:
                world.end_swap(answer)

    def take(self, world: World, output: StepOutput) -> None:
        update = world.scheduler.update(output)
        for delivery in update.deliveries:
            over = delivery.request.put(delivery.made.tokens, delivery.made.finish, self.now)
            if over and delivery.made.finish is None:
                assert world.scheduler.drop(delivery.request)
            if over:
                self.score_queue.offer(delivery.request)
        if update.scored is not None:
            assert [score.choice for score in update.scored.scores] == answer_of(update.scored.request)

    @rule(index=st.integers(0, 1))
    def die(self, index: int) -> None:
        present = list(self.worlds[index].scheduler.running.values())
        for request in present:
            self.num_deaths_met[request.id] = self.num_deaths_met.get(request.id, 0) + 1
        for request in self.worlds[index].scheduler.lose():
            assert self.num_deaths_met[request.id] >= MAX_SHARD_DEATHS
            request.fail(GenerationFailed("a shard died twice"), self.now)
        self.worlds[index].revive()

    @rule(index=st.integers(0, 1), depth=st.sampled_from(DEPTHS))
    def begin_swap(self, index: int, depth: int) -> None:
        world = self.worlds[index]
        if not world.scheduler.is_holding:
            world.begin_swap(depth)

    @rule(index=st.integers(0, 1))
    def migrate(self, index: int) -> None:
        """After a commit, take what runs off the older models; before one, off the shard."""
        scheduler = self.worlds[index].scheduler
        moved = scheduler.evict() if scheduler.is_holding else scheduler.migrate()
        assert all(request in self.queue for request in moved)

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
            places += [request.id in world.scheduler.running for world in self.worlds]
            places += [request.status is Status.FINISHED]
            assert places.count(True) == 1

    @invariant()
    def what_is_in_flight_is_known_to_the_token(self) -> None:
        for world in self.worlds:
            wished: Counter[tuple[int, int]] = Counter()
            for step in world.scheduler.in_flight:
                wished.update({(work.id, work.attempt): work.num_tokens for work in step.work})
            for request in world.scheduler.running.values():
                assert request.num_in_flight_tokens == wished[request.id, request.attempt]

    @invariant()
    def the_queue_counts_right(self) -> None:
        waiting = [request for request in self.requests if request in self.queue]
        assert len(self.queue) == len(waiting)
        assert self.queue.num_tokens == sum(request.num_tokens for request in waiting)

    @invariant()
    def every_answer_says_who_wrote_it(self) -> None:
        for request in self.requests:
            starts = [segment.from_token for segment in request.segments]
            assert starts == sorted(set(starts))
            assert starts[:1] == [0] * request.has_started
            assert all(segment.depth != other.depth for segment, other in pairwise(request.segments))
            depths = [segment.depth for segment in request.segments]
            layers = [output.exit_layer for output in request.outputs]
            ends = [*starts[1:], len(layers)]
            assert all(
                set(layers[first:end]) <= {depth}
                for first, end, depth in zip(starts, ends, depths, strict=False)
            )

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
            if not any(world.inbox or world.outbox for world in self.worlds):
                break
            for index in range(2):
                self.run(index)
                self.deliver(index)
        for world in self.worlds:
            [engine] = world.shard.living.values()
            assert len(engine.table) == 0
            assert engine.table.pool.num_free == engine.table.pool.num_blocks
        assert asyncio.run(self._check_ends()) is None

    async def _check_ends(self) -> None:
        for request in self.requests:
            assert request.status is Status.FINISHED
            ends = [event for event in request.events if isinstance(event, Finished)]
            assert len(ends) + isinstance(request.outcome, GenerationFailed) == 1
            if ends:
                text = "".join(f"{id} " for id in expected_answer(request.spec, COSTS))
                stop = request.spec.stop[0] if request.spec.stop else None
                assert ends[0].text == (text if stop is None else text[: text.index(stop) + len(stop)])


Interleavings.TestCase.settings = settings(
    max_examples=150, stateful_step_count=50, deadline=None, suppress_health_check=list(HealthCheck)
)
TestInterleavings = Interleavings.TestCase
