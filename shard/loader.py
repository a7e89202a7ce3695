"""Makes the real models of one shard."""

from collections.abc import Callable

import msgspec

from shard.memory import weight_bytes
from shard.messages import ShardConfig
from shard.runner import ModelRunner


class ModelLoader:
    """See `shard.generations.Loader`."""

    def first(self, config: ShardConfig) -> tuple[ModelRunner, int]:
        """The model that a shard starts with, and the bytes that it takes: weights and KV cache."""
        runner = ModelRunner(config)
        return runner, weight_bytes([runner.weights]) + runner.max_blocks * runner.block_bytes

    def beside(self, config: ShardConfig, total_bytes: int, is_wanted: Callable[[], bool]) -> ModelRunner:
        """Another one, within the same bytes once it is alone."""
        return ModelRunner(msgspec.structs.replace(config, kv_cache_bytes=total_bytes // 2))
