"""Runs steps: builds tensors, runs the forward pass, returns outputs. Knows no socket and no queue."""

import time
from collections.abc import Iterator
from pathlib import Path

import torch

from shard.drafts.chain import DraftChain
from shard.drafts.drafter import Drafter
from shard.drafts.drafting import Drafting, FullPass
from shard.drafts.head import HeadDrafter
from shard.drafts.text import TextDrafter
from shard.engine.full_depth import FullDepth
from shard.engine.grammar import GrammarCompiler
from shard.engine.kv_cache import KVCache, check_spare, free_bytes, is_elastic, memory_errors
from shard.engine.sampler import Sampler
from shard.engine.sequence_table import Chunk, SequenceTable
from shard.engine.step_inputs import BatchMaker
from shard.exits.capped import Capped
from shard.exits.criterion import ConfidenceCriterion
from shard.exits.early_exit import EarlyExit
from shard.exits.replay import Replay, read_replay
from shard.exits.segments import SegmentedDecoder
from shard.exits.speculative import Speculative
from shard.exits.streamed_scoring import StreamedScoring
from shard.memory import Weights
from shard.messages import (
    DrafterKind,
    ExitReport,
    Mode,
    Ready,
    SequenceOutput,
    ShardConfig,
    Step,
    StepOutput,
)
from shard.model import Model, reader_of
from shard.models.load import Decoder, MissingLayers
from shard.models.weight_cache import WeightReader
from shard.stopwatch import synchronizer

_MAX_COPIED_BYTES = 64 << 20  # of a prefix cache to the next model: no step runs meanwhile
_COMPILING_S = 0.002  # a step waits so long for a grammar where there is nothing else to do


class ModelRunner:
    """A model with its KV cache and its sequences. Everything runs on the thread that calls `run`.

    With a `decoder` or a `model` none is loaded: runners may share weights. `kv_bytes` is the limit of a
    cache made by the first `resize`; without it the cache has the configuration's size and is made at once.
    Raises `ValueError`, `OSError` or `MemoryError` with one sentence when the model cannot be served.
    """

    @memory_errors()
    def __init__(
        self,
        config: ShardConfig,
        decoder: Decoder | None = None,
        model: Model | None = None,
        kv_bytes: int | None = None,
    ):
        started = time.perf_counter()
        self.model = model or Model(config, reader_of(config), decoder)
        self.decoder, self.ops = self.model.decoder, self.model.reader.ops
        self._config = config
        self._device = torch.device(config.device)
        self._synchronize = synchronizer(self._device)
        self.kv_bytes = kv_budget(config) if kv_bytes is None else kv_bytes
        self.max_blocks = self._num_useful_blocks()
        is_later = kv_bytes is not None and not self.resizes_freely
        self.kv_cache = self._allocate(0 if is_later else self.max_blocks)
        self._max_tokens = min(self.model.max_tokens, self.max_blocks * config.block_tokens)
        self.grammars = GrammarCompiler(
            Path(config.model), self.decoder.shape.vocab_size, self.model.eos_token_ids
        )
        self.table = SequenceTable(
            self.max_blocks,
            config.block_tokens,
            self.model.eos_token_ids,
            self._max_tokens,
            self.grammars.constrain,
            config.prefix_cache,
        )
        self.sampler = Sampler(self.ops, self._device, self.model.eos_token_ids)
        self.make_batch = BatchMaker(config.block_tokens, self._device)
        self._full_depth = FullDepth(self.decoder, self.kv_cache.layers, self.make_batch, self.sampler)
        settings, exits = self.model.settings, self.model.exits
        self.stack = SegmentedDecoder(
            self.decoder, exits, self.kv_cache.layers, self.make_batch, settings.fill
        )
        self.exiting = self._make_exiting()
        self.drafting: Drafting | None = None
        if self.exiting is not None and (drafters := self._make_drafters()):
            self.draft_with(drafters, config.drafts_always)
        self.streamed = self._make_streamed()
        self.phases_ms = dict(self.model.reader.phases_ms)
        self.load_ms = (time.perf_counter() - started) * 1000
        self._last_end: float | None = None  # end of the last step, while sequences wait for the next

    @property
    def depth(self) -> int:
        return self.decoder.depth

    @property
    def fingerprint(self) -> str:
        return self.model.fingerprint

    @property
    def block_bytes(self) -> int:
        return self.model.block_bytes

    @property
    def resizes_freely(self) -> bool:
        return is_elastic(self._device)

    @property
    def weights(self) -> Weights:
        return self.model.reader.num_bytes

    def ready(self) -> Ready:
        """The properties of the loaded model."""
        shape, config = self.decoder.shape, self._config
        return Ready(
            model=config.model,
            version=self.model.version,
            device=config.device,
            dtype=self.model.precision.dtype,
            compute_dtype=self.model.precision.compute_dtype,
            weights=self.model.precision.weights,
            kv_dtype=self.model.precision.kv_dtype,
            kernels=self.ops.name,
            dtype_reason=self.model.precision.reason,
            num_layers=shape.num_layers,
            depth=self.depth,
            vocab_size=shape.vocab_size,
            max_total_tokens=self._max_tokens,
            block_size=config.block_tokens,
            num_blocks=self.table.pool.num_blocks,
            eos_token_ids=self.model.eos_token_ids,
            num_parameters=self.decoder.num_parameters,
            weight_bytes=self.model.weight_bytes,
            load_ms=self.load_ms,
            can_score=self.streamed is not None or self.depth == shape.num_layers,
            can_constrain=self.grammars.has_tokenizer,
            warnings=self.model.warnings,
            exit_thresholds=self.model.exit_thresholds,
        )

    @memory_errors()
    def resize(self, num_blocks: int) -> None:
        """Set the number of blocks, at least those in use. Brings staged weights to the device.

        Raises `MemoryError`, with nothing changed.
        """
        check_spare(self._device, self.model.reader.num_staged_bytes)
        self.model.reader.arrive()
        if self.resizes_freely:
            has_fewer = num_blocks < self.table.pool.num_blocks
            out_of_reach = self.table.pool.limit(num_blocks)
            self.kv_cache.release(out_of_reach if has_fewer else [])
        elif num_blocks != self.kv_cache.num_blocks:
            more = num_blocks - self.kv_cache.num_blocks
            check_spare(self._device, more * self.block_bytes)
            self.kv_cache.rebuild(self.table.repack(num_blocks), num_blocks)

    def inherit(self, other: "ModelRunner", max_blocks: int) -> int:
        """See `shard.served_models.Engine`.

        Keys and values of the layers that both have are copied. More layers than the other's would take the
        whole pass: they begin from hidden states, which nobody keeps.
        """
        if not (self.resizes_freely and self.model.begins_as(other.model)):
            return 0
        number_of = self.table.inherit(other.table, min(max_blocks, _MAX_COPIED_BYTES // self.block_bytes))
        self.kv_cache.copy(other.kv_cache, number_of)
        return len(number_of)

    def touch_ahead(self) -> Iterator[None]:
        """Take, page by page, the memory of the next blocks."""
        pool = self.table.pool
        return self.kv_cache.touch_ahead(pool.num_reached, pool.num_blocks)

    @torch.inference_mode()
    def run(self, step: Step) -> StepOutput:
        """Run one step; synchronous."""
        chunks, preempted = self.table.plan(step)
        if step.work and not chunks:  # else the router would ask again and again
            self.grammars.wait(_COMPILING_S)
        scored = self._score_on(chunks)
        started = time.perf_counter()
        outputs, exits = self._run_chunks(chunks)
        self._synchronize()  # a step that draws nothing does not wait otherwise
        for _ in self.touch_ahead():
            pass
        ended = time.perf_counter()
        idle_ms = (started - self._last_end) * 1000 if self._last_end is not None else 0.0
        self._last_end = ended if len(self.table) else None
        if self.streamed is not None:
            self.streamed.earn((ended - started) * 1000)
        return StepOutput(
            number=step.number,
            outputs=outputs + scored,
            preempted=preempted,
            num_free_blocks=self.table.pool.num_free,
            num_sequences=len(self.table),
            num_tokens=sum(chunk.num_tokens for chunk in chunks),
            step_ms=(ended - started) * 1000,
            idle_ms=idle_ms,
            exits=exits,
            grammar=self.grammars.take_report(),
            cache=self.table.take_report(),
        )

    def _run_chunks(self, chunks: list[Chunk]) -> tuple[list[SequenceOutput], ExitReport | None]:
        """Run scored prompts at full depth, and other chunks in the chosen mode."""
        outputs: list[SequenceOutput] = []
        report = None
        if self.streamed is not None:
            streamed = [chunk for chunk in chunks if chunk.sequence.scores]
            chunks = [chunk for chunk in chunks if not chunk.sequence.scores]
            for chunk in streamed:
                if chunk.num_tokens:
                    self.streamed.take(chunk)
                    outputs.append(self.table.finish(chunk, []))
        at_full_depth = [chunk for chunk in chunks if self.exiting is None or chunk.sequence.is_scored]
        others = [chunk for chunk in chunks if self.exiting is not None and not chunk.sequence.is_scored]
        if at_full_depth:
            for chunk, made in zip(at_full_depth, self._full_depth.run(at_full_depth), strict=True):
                outputs.append(self.table.finish(chunk, made.tokens, made.prompt, made.scores))
        if others and self.exiting:
            tokens, report = (self.drafting or self.exiting).run(others)
            outputs += map(self.table.finish, others, tokens)
        return outputs, report

    def _score_on(self, chunks: list[Chunk]) -> list[SequenceOutput]:
        """Continue scoring through missing layers; returns the finished sequences."""
        if self.streamed is None:
            return []
        is_idle = bool(chunks) and all(chunk.sequence.scores and chunk.sequence.waits for chunk in chunks)
        return [
            self.table.finish(
                Chunk(reading.sequence, reading.sequence.num_computed_tokens, 0), [], scores=reading.scores
            )
            for reading in self.streamed.go_on(self.table, is_idle)
        ]

    def _make_streamed(self) -> StreamedScoring | None:
        """The scoring through missing layers; None if none are missing or the budget is 0."""
        config, reader = self._config, self.model.reader
        if self.depth == self.decoder.shape.num_layers or not config.score_budget:
            return None
        missing = MissingLayers(
            Path(config.model),
            self.decoder,
            lambda: WeightReader(reader.ops, self.model.like, weights=reader.weights),
        )
        pools, make_batch = self.kv_cache.layers, self.make_batch
        return StreamedScoring(self._full_depth, missing, pools, make_batch, config.score_budget)

    def _make_exiting(self) -> EarlyExit | Capped | Speculative | FullPass | None:
        settings = self.model.settings
        if settings.mode is Mode.FULL:
            return None
        segmented = self.stack
        criterion = ConfidenceCriterion(settings.criterion, settings.threshold, self.ops, self.sampler.rules)
        if settings.mode is Mode.CAPPED:
            return Capped(segmented, criterion, self.sampler, self._replay(None))
        if settings.mode is Mode.SPECULATIVE:
            if not self.model.exits:
                return FullPass(self._full_depth, self.depth)
            return Speculative(
                segmented, self._full_depth, self.sampler, self.table.reserve, settings.falls_back
            )
        replay = self._replay([exit_head.layer for exit_head in self.model.exits])
        return EarlyExit(segmented, settings, criterion, self._full_depth, self.sampler, replay)

    def draft_with(self, drafters: list[Drafter], always: bool = False) -> None:
        """Let drafters draft around the mode. `always`: whatever they draft is verified."""
        assert self.exiting is not None
        chain = DraftChain(drafters, self.table.reserve_more, always)
        self.drafting = Drafting(self.exiting.run, chain, self.table, self._full_depth.taps)

    def _make_drafters(self) -> list[Drafter]:
        """The configuration's drafters, but for exits, which draft within the mode."""
        config, drafters = self._config, list[Drafter]()
        for kind in config.drafters:
            match kind:
                case DrafterKind.TEXT:
                    drafters.append(TextDrafter(config.draft_sharing))
                case DrafterKind.HEAD if self.model.draft_head is not None:
                    pools = self.kv_cache.layers
                    drafters.append(HeadDrafter(self.model.draft_head, pools, self.make_batch, self.sampler))
        return drafters

    def _replay(self, exit_layers: list[int] | None) -> Replay | None:
        """The replay of exit layers, if one is configured."""
        path = self._config.replay_exits
        num_layers = self.decoder.shape.num_layers
        return Replay(read_replay(Path(path)), exit_layers, num_layers) if path else None

    def _num_useful_blocks(self) -> int:
        """Blocks that memory holds, at most those of the largest batch. Raises `MemoryError` if 0."""
        num_blocks = self.kv_bytes // self.block_bytes
        if num_blocks < 1:
            raise MemoryError(
                f"a KV cache of {self.kv_bytes} bytes holds no block of {self.block_bytes} bytes"
            )
        longest = -(-self.model.max_tokens // self._config.block_tokens)
        return min(num_blocks, self._config.max_batch_size * longest)

    def _allocate(self, num_blocks: int) -> KVCache:
        heads, num_layers = self.decoder.shape.heads, len(self.decoder.layers)  # with exit heads' own layers
        return KVCache(self.ops, heads, num_layers, num_blocks, self.model.empty_kv)


def kv_budget(config: ShardConfig) -> int:
    """Bytes of KV cache in a configuration; by default the device's free memory."""
    if config.kv_cache_bytes is not None:
        return config.kv_cache_bytes
    return max(0, free_bytes(torch.device(config.device)) - (config.swap_reserve_bytes or 0))
