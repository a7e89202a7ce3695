"""The CPU time that a scheduler spends on a step of sequences that are running already."""

import statistics
import time

import msgspec

from router.catalog.served_model import ServedModel, Target
from router.scheduling.request import Request, Spec
from router.scheduling.scheduler import Limits, Scheduler
from router.scheduling.waiting_queue import WaitingQueue
from router.simulation.world import byte_tokenizer
from shard.clock import VirtualClock
from shard.messages import ShardConfig
from shard.sim.sim_runner import SimRunner

_NUM_STEPS = 200
_NUM_PROMPT_TOKENS = 8


class StepCost(msgspec.Struct, frozen=True):
    """CPU time of one step in microseconds: the median of many."""

    sequences: int
    schedule_us: float
    update_us: float

    @property
    def us(self) -> float:
        return self.schedule_us + self.update_us


def step_costs(nums_sequences: list[int]) -> list[StepCost]:
    return [_measure(num_sequences) for num_sequences in nums_sequences]


def _measure(num_sequences: int) -> StepCost:
    queue = WaitingQueue()
    tokenizer = byte_tokenizer()
    config = ShardConfig(model="sim", device="sim", max_batch_size=num_sequences, max_total_tokens=1024)
    shard = SimRunner(config, VirtualClock())
    target = Target("sim", config, tokenizer)
    limits = Limits(num_sequences, 16 * num_sequences, config.block_tokens)
    scheduler = Scheduler(0, limits, ServedModel(0, target, shard.ready()), queue)
    for id in range(num_sequences):
        spec = Spec(prompt_token_ids=[1] * _NUM_PROMPT_TOKENS, tokenizer=tokenizer, max_new_tokens=10**6)
        queue.add(Request(id, spec, 0.0))
    scheduling, updating = [], []
    for _ in range(_NUM_STEPS):
        began = time.thread_time()
        step = scheduler.schedule(0.0)
        scheduled = time.thread_time()
        assert step is not None
        output = shard.run(step)
        ran = time.thread_time()
        update = scheduler.update(output)
        updated = time.thread_time()
        for delivery in update.deliveries:
            delivery.request.put(delivery.made.tokens, delivery.made.finish, 0.0)
            delivery.request.events.clear()
        scheduling.append(scheduled - began)
        updating.append(updated - ran)
    return StepCost(num_sequences, 1e6 * statistics.median(scheduling), 1e6 * statistics.median(updating))
