"""Loads the real models of one shard, which share weights and one memory budget."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import torch

from shard.engine.kv_cache import CUDA_ACTIVATION_BYTES, check_spare, is_elastic, memory_errors
from shard.host_memory import available_bytes
from shard.memory import weight_bytes
from shard.messages import ShardConfig
from shard.model import Model, empty_of, ops_of, precision_in
from shard.models.weight_cache import Note, StagingWeightReader, WeightCache, WeightReader
from shard.ops.plain import PlainOps
from shard.runner import ModelRunner
from shard.served_models import Unwanted

_PAUSE_SHARE = 4  # pause after a page, in multiples of the page's time
_SPARED_SHARE = 0.1  # share of the host's free memory left to others


class ModelLoader:
    """See `shard.served_models.Loader`."""

    def __init__(self) -> None:
        self._cache = WeightCache()
        self._ops: dict[tuple[str, int], PlainOps] = {}  # by precision and size of block

    @memory_errors()
    def first(self, config: ShardConfig) -> tuple[ModelRunner, int]:
        """The model that a shard starts with, and its budget in bytes for weights and KV cache."""
        started = time.perf_counter()
        weights = precision_in(config).weights
        reader = WeightReader(self._ops_of(config), empty_of(config), self._cache, weights=weights)
        runner = ModelRunner(config, model=Model(config, reader))
        runner.kv_cache.touch()
        runner.grammars.warm_up()
        runner.load_ms = (time.perf_counter() - started) * 1000
        return runner, weight_bytes([runner.weights]) + runner.kv_bytes

    @memory_errors()
    def beside(self, config: ShardConfig, total_bytes: int, is_wanted: Callable[[], bool]) -> ModelRunner:
        """Load another model, within the same budget once it is alone; on one thread, beside steps."""
        started = time.perf_counter()
        with _one_thread():
            model = Model(config, self._reader(config, Allowance(_spare_bytes(config), is_wanted)))
            phases_ms = model.reader.phases_ms
            with _timed(phases_ms, "copy"):
                _bring(model.reader)
            with _timed(phases_ms, "allocate"):
                kv_bytes = total_bytes - weight_bytes([model.reader.num_bytes])
                runner = ModelRunner(config, model=model, kv_bytes=max(0, kv_bytes))
                _take_gently(runner)
        runner.grammars.warm_up()
        runner.phases_ms = phases_ms
        runner.load_ms = (time.perf_counter() - started) * 1000
        return runner

    def _reader(self, config: ShardConfig, note: Note) -> WeightReader:
        """A reader that loads directly into memory, or stages weights for a GPU."""
        to = empty_of(config)
        kind = WeightReader if is_elastic(to.device) else StagingWeightReader
        return kind(self._ops_of(config), to, self._cache, note, precision_in(config).weights)

    def _ops_of(self, config: ShardConfig) -> PlainOps:
        key = (precision_in(config).label, config.block_tokens)
        if key not in self._ops:
            self._ops[key] = ops_of(config)
        return self._ops[key]


class Allowance:
    """Lets a model be read while it is wanted and its new weights fit into memory."""

    def __init__(self, max_bytes: int | None, is_wanted: Callable[[], bool]):
        self._max_bytes = max_bytes
        self._num_bytes = 0
        self._is_wanted = is_wanted

    def __call__(self, num_bytes: int) -> None:
        """Count bytes read. Raises `Unwanted` or `MemoryError`."""
        if not self._is_wanted():
            raise Unwanted
        self._num_bytes += num_bytes
        if self._max_bytes is not None and self._num_bytes > self._max_bytes:
            raise MemoryError(
                f"What is new of the model takes more than the {self._max_bytes} bytes that there are for it."
            )


def _spare_bytes(config: ShardConfig) -> int | None:
    """Bytes for weights beside those in use; None if unknown."""
    if config.swap_reserve_bytes is not None:
        return config.swap_reserve_bytes
    available = available_bytes()
    return None if available is None else int(available * (1 - _SPARED_SHARE))


def _bring(reader: WeightReader) -> None:
    """Copy staged weights to the device beside running steps, if it has room now."""
    if reader.device.type != "cuda":
        return
    stream = torch.cuda.Stream(reader.device)
    with suppress(MemoryError), memory_errors(), torch.cuda.stream(stream):  # else copied at the commit
        check_spare(reader.device, reader.num_staged_bytes + CUDA_ACTIVATION_BYTES)
        reader.arrive()


def _take_gently(runner: ModelRunner) -> None:
    """Take the memory of the first blocks with pauses: steps may wait while the kernel clears a page."""
    started = time.perf_counter()
    for _ in runner.touch_ahead():
        time.sleep(_PAUSE_SHARE * (time.perf_counter() - started))
        started = time.perf_counter()


@contextmanager
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def _timed(phases_ms: dict[str, float], name: str) -> Iterator[None]:
    started = time.perf_counter()
    try:
        yield
    finally:
        phases_ms[name] = (time.perf_counter() - started) * 1000
