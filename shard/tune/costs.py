"""Costs of layers and exits on this machine, and the speed-up that they allow at most."""

import statistics
from collections.abc import Callable

import msgspec
import torch

from shard.engine.sequence_table import Chunk, lay_out
from shard.exits.segments import Row
from shard.messages import NewSequence
from shard.runner import ModelRunner
from shard.stopwatch import measured_ms, synchronizer

CONTEXT = 128  # context tokens of the timed token
REPEATS = 25


class Costs(msgspec.Struct, frozen=True):
    """Milliseconds for one row."""

    segment_ms: list[float]  # layers up to each exit, then those behind the last one
    ask_ms: list[float]  # of each exit: head and vocabulary
    head_ms: float  # of the LM head

    @property
    def full_ms(self) -> float:
        return sum(self.segment_ms) + self.head_ms

    def saved_ms(self, exit_index: int) -> float:
        """Milliseconds saved by a row that leaves at an exit."""
        return sum(self.segment_ms[exit_index + 1 :]) + self.head_ms

    def break_even(self, exit_index: int) -> float:
        """Share of asked rows that must leave at an exit for asking to pay."""
        return self.ask_ms[exit_index] / self.saved_ms(exit_index)

    def capped_speedup_bound(self, exit_index: int) -> float:
        """Upper bound of the speed-up of `capped` at an exit's depth."""
        return self.full_ms / (sum(self.segment_ms[: exit_index + 1]) + self.ask_ms[exit_index])

    def speedup_bound(self, leaving: list[float], asked: list[float]) -> float:
        """Upper bound of one row's speed-up over full depth, if only layers and heads cost time.

        By exit: `leaving`, the share of all tokens that leave there; `asked`, the share of tokens reaching it
        for which its head runs.
        """
        ms, staying = 0.0, 1.0
        for i, share in enumerate(leaving):
            ms += staying * (self.segment_ms[i] + asked[i] * self.ask_ms[i])
            staying -= share
        return self.full_ms / (ms + staying * (self.segment_ms[-1] + self.head_ms))


@torch.inference_mode()
def measure_costs(runner: ModelRunner) -> Costs:
    """Time each part alone, by the median of a few runs; the runner must be idle."""
    stack, block_size = runner.stack, runner.table.block_size
    length = min(CONTEXT, runner.kv_cache.num_blocks * block_size, runner.model.max_tokens)
    (whole,) = lay_out([NewSequence(0, 0, [1] * length, length, 1)], block_size)
    active = stack.start([Row(Chunk(whole.sequence, length - 1, 1), stack.num_segments)])

    def ask(segment: int) -> None:
        stack.exits[segment].vocabulary(stack.features(segment, active, [0]))

    synchronize = synchronizer(active.hidden.device)

    def median_ms(run: Callable[..., object], *given: object) -> float:
        return statistics.median(measured_ms(lambda: run(*given), synchronize) for _ in range(REPEATS))

    return Costs(
        [median_ms(stack.run, segment, active) for segment in range(stack.num_segments)],
        [median_ms(ask, segment) for segment in range(len(stack.exits))],
        median_ms(stack.decoder.logits, active.hidden),
    )
