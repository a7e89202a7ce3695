"""A step becomes tensors, a forward pass, and a step output. Knows no socket and no queue."""

import os
import time
from pathlib import Path

import torch

from shard.batch import Chunk, SequenceTable
from shard.batch_tensors import BatchMaker
from shard.capped import Capped
from shard.confidence import Gauge
from shard.early_exit import EarlyExit
from shard.exit_settings import Mode, settings_of
from shard.exits import Exit, ExitFile, ExitSpec, check_criterion, load_exits, read_exits
from shard.full_depth import FullDepth
from shard.kv_cache import KVCache, block_bytes, free_bytes
from shard.memory import Weights
from shard.messages import ExitReport, Ready, SequenceOutput, ShardConfig, Step, StepOutput
from shard.models.checkpoint import digest
from shard.models.load import Decoder, load_decoder
from shard.models.shape import eos_token_ids, read_config
from shard.models.shelf import Reader
from shard.ops.choose import choose_ops
from shard.replay import Replay, read_replay
from shard.sampler import Sampler
from shard.speculative import Speculative
from shard.stack import Stack

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
CACHE = Path.home() / ".cache" / "helios"


class ModelRunner:
    """A model on a device with its KV cache. Everything runs on the thread that calls `run`.

    A `decoder` given is used instead of loading one: runners may share weights. Raises `ValueError`,
    `OSError` or `MemoryError` with one sentence when the model cannot be served.
    """

    def __init__(self, config: ShardConfig, decoder: Decoder | None = None):
        started = time.perf_counter()
        self._config = config
        self._folder = Path(config.model)
        self._device = torch.device(config.device)
        num_threads = config.num_threads or os.cpu_count() or 1
        torch.set_num_threads(num_threads)
        to = torch.empty(0, dtype=DTYPES[config.dtype], device=self._device)
        cache = Path(config.cache_dir) if config.cache_dir else CACHE
        self.ops = choose_ops(self._device, to.dtype, config.block_size, num_threads, cache)
        self._max_tokens = _max_tokens(config, read_config(self._folder).max_position_embeddings)
        self._settings = settings_of(config)
        self._reader = Reader(self.ops, to)
        if decoder is None:
            self.decoder = load_decoder(self._folder, self._reader, config.num_layers, self._max_tokens)
        else:
            self.decoder = decoder.first_layers(config.num_layers or decoder.depth)
        self._exits = self._load_exits()
        self.kv_cache = self._allocate(to)
        self._eos = eos_token_ids(self._folder, read_config(self._folder))
        self._max_tokens = min(self._max_tokens, self.kv_cache.num_blocks * config.block_size)
        self.table = SequenceTable(self.kv_cache.num_blocks, config.block_size, self._eos, self._max_tokens)
        self._sampler = Sampler(self.ops, self._device)
        self._make_batch = BatchMaker(config.block_size, self._device)
        self._full_depth = FullDepth(self.decoder, self.kv_cache.layers, self._make_batch, self._sampler)
        self.stack = Stack(
            self.decoder, self._exits, self.kv_cache.layers, self._make_batch, self._settings.fill
        )
        self._exiting = self._make_exiting()
        self._load_ms = (time.perf_counter() - started) * 1000
        self.resizes_freely = True
        self.phases_ms = {"load": self._load_ms}
        self._last_end: float | None = None  # of the last step, while sequences wait for the next

    @property
    def depth(self) -> int:
        return self.decoder.depth

    @property
    def block_bytes(self) -> int:
        """What one KV block takes in all layers together."""
        layers = len(self.decoder.layers)
        return block_bytes(self.ops, self.decoder.shape.heads, layers, self.decoder.embedding)

    @property
    def weights(self) -> Weights:
        """Bytes of its weights."""
        return {id(self.decoder): self.decoder.num_parameters * DTYPES[self._config.dtype].itemsize}

    @property
    def max_blocks(self) -> int:
        return self.kv_cache.num_blocks

    def resize(self, num_blocks: int) -> None:
        """See `Engine`."""
        self.table.pool.limit(num_blocks)

    def ready(self) -> Ready:
        """What was learned while loading."""
        shape, config = self.decoder.shape, self._config
        return Ready(
            model=config.model,
            version=f"{digest(self._folder)}-{config.dtype}-{self.depth}",
            device=config.device,
            dtype=config.dtype,
            num_layers=shape.num_layers,
            depth=self.depth,
            vocab_size=shape.vocab_size,
            max_total_tokens=self._max_tokens,
            block_size=config.block_size,
            num_blocks=self.kv_cache.num_blocks,
            eos_token_ids=self._eos,
            num_parameters=self.decoder.num_parameters,
            weight_bytes=self.decoder.num_parameters * DTYPES[config.dtype].itemsize,
            load_ms=self._load_ms,
        )

    @torch.inference_mode()
    def run(self, step: Step) -> StepOutput:
        """Carry out one step; synchronous."""
        started = time.perf_counter()
        chunks, preempted = self.table.plan(step)
        outputs, exits = self._run_chunks(chunks)
        ended = time.perf_counter()
        idle_ms = (started - self._last_end) * 1000 if self._last_end is not None else 0.0
        self._last_end = ended if len(self.table) else None
        return StepOutput(
            number=step.number,
            outputs=outputs,
            preempted=preempted,
            num_free_blocks=self.table.pool.num_free,
            num_sequences=len(self.table),
            num_tokens=sum(chunk.num_tokens for chunk in chunks),
            step_ms=(ended - started) * 1000,
            idle_ms=idle_ms,
            exits=exits,
        )

    def _run_chunks(self, chunks: list[Chunk]) -> tuple[list[SequenceOutput], ExitReport | None]:
        """Prompts that are scored run to full depth in any mode; the rest runs in the mode chosen."""
        outputs: list[SequenceOutput] = []
        report = None
        at_full_depth = [chunk for chunk in chunks if self._exiting is None or chunk.sequence.is_scored]
        others = [chunk for chunk in chunks if self._exiting is not None and not chunk.sequence.is_scored]
        if at_full_depth:
            for chunk, made in zip(at_full_depth, self._full_depth.run(at_full_depth), strict=True):
                outputs.append(self.table.finish(chunk, made.tokens, made.prompt, made.scores))
        if others and self._exiting:
            tokens, report = self._exiting.run(others)
            outputs += map(self.table.finish, others, tokens)
        return outputs, report

    def _load_exits(self) -> list[Exit]:
        """The exits that the mode uses, in order. Raises `ExitError` and `CheckpointError`."""
        config, decoder = self._config, self.decoder
        if self._settings.mode is Mode.FULL:
            return []
        folder = Path(config.exits) if config.exits else None
        layers = config.exit_layers or [decoder.depth] * (self._settings.mode is Mode.CAPPED)
        file = read_exits(folder) if folder else ExitFile([ExitSpec(layer) for layer in layers])
        exits = load_exits(file, folder, decoder, self._reader, self._settings.mode is Mode.CAPPED)
        check_criterion(exits, self._settings.criterion)
        return exits

    def _make_exiting(self) -> EarlyExit | Capped | Speculative | None:
        config, settings = self._config, self._settings
        if settings.mode is Mode.FULL:
            return None
        stack = self.stack
        gauge = Gauge(settings.criterion, settings.threshold, self.ops)
        if settings.mode is Mode.CAPPED:
            return Capped(stack, gauge, self._sampler)
        if settings.mode is Mode.SPECULATIVE:
            return Speculative(
                stack, self._full_depth, self._sampler, self.table.reserve, settings.falls_back
            )
        replay = None
        if config.replay_exits:
            layers = [exit.layer for exit in self._exits]
            replay = Replay(read_replay(Path(config.replay_exits)), layers, self.depth)
        return EarlyExit(stack, settings, gauge, self._full_depth, self._sampler, replay)

    def _allocate(self, to: torch.Tensor) -> KVCache:
        heads, block_size = self.decoder.shape.heads, self._config.block_size
        wanted = self._config.kv_cache_bytes
        num_bytes = free_bytes(self._device) if wanted is None else wanted
        num_layers = len(self.decoder.layers)  # with those of exit heads
        num_blocks = num_bytes // self.block_bytes
        if num_blocks < 1:
            raise MemoryError(f"a KV cache of {num_bytes} bytes holds no block of {self.block_bytes} bytes")
        useful = self._config.max_batch_size * -(-self._max_tokens // block_size)
        return KVCache(self.ops, heads, num_layers, min(num_blocks, useful), to)


def _max_tokens(config: ShardConfig, max_positions: int) -> int:
    """The longest sequence that model and configuration allow."""
    return min(config.max_total_tokens or max_positions, max_positions)
