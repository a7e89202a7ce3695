"""Lower bound of a decode step's time: bytes it must read, divided by the device's bandwidth."""

import statistics

import msgspec
import torch

from shard.runner import ModelRunner
from shard.stopwatch import measured_ms, synchronizer

GPU_COPY_BYTES, CPU_COPY_BYTES = 1 << 30, 1 << 27  # several times the device's caches
NUM_COPIES = 9


class Limit(msgspec.Struct, frozen=True):
    """A full-depth decode step by memory alone: it reads all weights, and every row's keys and values."""

    weight_bytes: int
    kv_bytes: int
    bytes_per_ms: float

    @property
    def step_ms(self) -> float:
        return (self.weight_bytes + self.kv_bytes) / self.bytes_per_ms


def limit_of(runner: ModelRunner, batch_size: int, context: float, bytes_per_ms: float) -> Limit:
    """The bound for `batch_size` rows with contexts of `context` tokens."""
    tensors = {id(t): t for linear in runner.decoder.linears for t in linear.tensors}
    weight_bytes = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    token_bytes = runner.block_bytes / runner.table.block_size
    return Limit(weight_bytes, int(batch_size * context * token_bytes), bytes_per_ms)


def copied_bytes_per_ms(device: torch.device) -> float:
    """Bytes read and written per ms when copying a large tensor; median of several copies."""
    num_bytes = GPU_COPY_BYTES if device.type == "cuda" else CPU_COPY_BYTES
    source = torch.ones(num_bytes, dtype=torch.uint8, device=device)
    target, synchronize = torch.empty_like(source), synchronizer(device)
    times = [measured_ms(lambda: target.copy_(source), synchronize) for _ in range(NUM_COPIES)]
    return 2 * num_bytes / statistics.median(times[1:])
