"""What the prefix cache costs the router: time to form a step, and memory of the index."""

import statistics
import sys
import time

import msgspec

from router.catalog.served_model import ServedModel, Target
from router.fleet.balancer import Balancer
from router.fleet.live_requests import RequestRegistry
from router.scheduling.prefix_index import PrefixIndex, block_keys
from router.scheduling.request import Request, Spec
from router.scheduling.scheduler import Limits, Scheduler
from router.simulation.world import byte_tokenizer
from shard.messages import Ready, SequenceOutput, ShardConfig, StepOutput, TokenOutput

_NUM_SEQUENCES = 256
_BLOCK_TOKENS = 16
_PROMPT_TOKENS = 512
_READY = Ready("sim", "v", "sim", "", 1, 1, 512, 1 << 20, _BLOCK_TOKENS, 1 << 17, [], 0, 0, 0.0)


class Costs(msgspec.Struct, frozen=True):
    """Medians; steps of 256 sequences that decode, while others wait."""

    schedule_us: float  # a step, with its share of the queue
    schedule_us_without: float  # the same without a prefix cache
    start_us: float  # a step that starts one request of 512 tokens, its blocks' keys made before
    keys_us: float  # keys of such a request, made once
    index_bytes_per_block: float


class _Shard:
    """A shard as the balancer sees it, always able to serve."""

    is_draining = False
    is_responsive = True
    is_hopeless = False

    def __init__(self, scheduler: Scheduler):
        self.scheduler: Scheduler | None = scheduler

    def has_model(self, identity: object) -> bool:
        return False

    def can_serve(self, requirements: object) -> bool:
        return True

    def wake(self) -> None:
        pass


class _Steps:
    """One shard with 256 sequences, whose steps are answered at once."""

    def __init__(self, caches: bool):
        self._tokenizer = byte_tokenizer()
        target = Target("sim", ShardConfig("sim", device="sim"), self._tokenizer)
        self._balancer = Balancer(RequestRegistry())
        prefixes = PrefixIndex(_READY.num_blocks) if caches else None
        limits = Limits(_NUM_SEQUENCES, 1 << 20, _BLOCK_TOKENS)
        model = ServedModel(0, target, _READY)
        self.scheduler = Scheduler(0, limits, model, self._balancer.queue, prefixes=prefixes)
        self._shard = _Shard(self.scheduler)
        self._balancer.shards.append(self._shard)
        self._num_requests = 0
        for _ in range(_NUM_SEQUENCES):
            self.ask()
        self.step()
        for _ in range(64):  # these wait
            self.ask()

    def ask(self) -> Request:
        self._num_requests += 1
        ids = [(self._num_requests * 7 + place * 13) % 512 for place in range(_PROMPT_TOKENS)]
        spec = Spec(prompt_token_ids=ids, tokenizer=self._tokenizer, max_new_tokens=1 << 16)
        request = Request(self._num_requests, spec, float(self._num_requests))
        request.block_keys(_BLOCK_TOKENS)
        self._balancer.queue.add(request)
        return request

    def step(self) -> float:
        """Form a step; returns microseconds. Its answer is a token of each sequence."""
        began = time.thread_time()
        step = self.scheduler.schedule(0.0, self._balancer.quota(self._shard))
        ended = time.thread_time()
        assert step is not None
        outputs = [
            SequenceOutput(
                work.id, work.attempt, self.scheduler.running[work.id].num_tokens, [TokenOutput(1, 0.0, 1)]
            )
            for work in step.work
        ]
        for delivery in self.scheduler.update(
            StepOutput(step.number, outputs, [], _READY.num_blocks // 2, len(outputs))
        ).deliveries:
            delivery.request.outputs += delivery.made.tokens
        return (ended - began) * 1e6

    def start_one(self) -> float:
        """A step in which one sequence ends and another begins; microseconds."""
        self.scheduler.drop(next(iter(self.scheduler.running.values())))
        self.ask()
        return self.step()


def measure_costs(num_steps: int = 100) -> Costs:
    cached, without = _Steps(True), _Steps(False)
    times: dict[_Steps, list[float]] = {cached: [], without: []}
    for _ in range(num_steps):
        for steps in times:
            times[steps].append(steps.step())
    return Costs(
        round(statistics.median(times[cached]), 1),
        round(statistics.median(times[without]), 1),
        round(statistics.median(cached.start_one() for _ in range(num_steps)), 1),
        round(_keys_us(num_steps), 1),
        round(index_bytes_per_block(), 1),
    )


def index_bytes_per_block(num_blocks: int = 50_000) -> float:
    """Of an index that is full."""
    index = PrefixIndex(num_blocks)
    index.add(block_keys("", range(num_blocks), 1))
    return sum(map(sys.getsizeof, vars(index).values())) / len(index)


def _keys_us(num_steps: int) -> float:
    ids, times = list(range(_PROMPT_TOKENS)), []
    for _ in range(num_steps):
        began = time.perf_counter()
        block_keys("", ids, _BLOCK_TOKENS)
        times.append((time.perf_counter() - began) * 1e6)
    return statistics.median(times)
