"""A step becomes tensors, a forward pass, and a step output. Knows no socket and no queue."""

import os
import time
from pathlib import Path

import numpy as np
import torch

from shard.batch import Chunk, SequenceTable
from shard.kv_cache import KVCache, block_bytes, free_bytes
from shard.messages import Ready, SequenceOutput, ShardConfig, Step, StepOutput, TokenOutput
from shard.models.checkpoint import digest
from shard.models.load import load_decoder
from shard.models.shape import eos_token_ids, read_config
from shard.ops.batch import Batch
from shard.ops.choose import choose_ops
from shard.sampler import Draw, Sampler

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
CACHE = Path.home() / ".cache" / "helios"
SCORED_ROWS = 128  # prompt positions whose logits are held at once


class ModelRunner:
    """A model on a device with its KV cache. Everything runs on the thread that calls `run`.

    Raises `ValueError`, `OSError` or `MemoryError` with one sentence when the model cannot be served.
    """

    def __init__(self, config: ShardConfig, cache: Path = CACHE):
        started = time.perf_counter()
        self._config = config
        self._folder = Path(config.model)
        self._device = torch.device(config.device)
        num_threads = config.num_threads or os.cpu_count() or 1
        torch.set_num_threads(num_threads)
        to = torch.empty(0, dtype=DTYPES[config.dtype], device=self._device)
        self.ops = choose_ops(self._device, to.dtype, config.block_size, num_threads, cache)
        self._max_tokens = _max_tokens(config, read_config(self._folder).max_position_embeddings)
        self.decoder = load_decoder(
            self._folder, self.ops, to, config.num_layers, self._max_tokens, fills=False
        )
        self.kv_cache = self._allocate(to)
        self._eos = eos_token_ids(self._folder, read_config(self._folder))
        self._max_tokens = min(self._max_tokens, self.kv_cache.num_blocks * config.block_size)
        self.table = SequenceTable(self.kv_cache.num_blocks, config.block_size, self._eos, self._max_tokens)
        self._sampler = Sampler(self.ops, self._device)
        self._load_ms = (time.perf_counter() - started) * 1000
        self._last_end: float | None = None  # of the last step, while sequences wait for the next

    @property
    def depth(self) -> int:
        return self.decoder.depth

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
        outputs = [] if not chunks else self._run_chunks(chunks)
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
        )

    def forward(self, batch: Batch) -> torch.Tensor:
        """Hidden states (T, H) after the last layer loaded; writes the tokens' KV."""
        hidden = self.decoder.embed(batch)
        for index, kv in enumerate(self.kv_cache.layers):
            hidden = self.decoder.run_layer(index, hidden, batch, kv)
        return hidden

    def make_batch(self, chunks: list[Chunk]) -> Batch:
        """The tensors of a step, on the device."""
        block_size = self._config.block_size
        token_ids: list[int] = []
        positions: list[int] = []
        slots: list[int] = []
        starts = [0]
        tables = np.zeros((len(chunks), max(len(c.sequence.blocks) for c in chunks)), dtype=np.int32)
        for row, chunk in enumerate(chunks):
            blocks, at = chunk.sequence.blocks, range(chunk.start, chunk.end)
            tables[row, : len(blocks)] = blocks
            token_ids += chunk.sequence.token_ids[chunk.start : chunk.end]
            positions += at
            slots += [blocks[p // block_size] * block_size + p % block_size for p in at]
            starts.append(len(token_ids))
        return Batch(
            self._tensor(token_ids),
            self._tensor(positions),
            self._tensor(slots),
            self._tensor(starts),
            self._tensor([chunk.end for chunk in chunks]),
            torch.from_numpy(tables).to(self._device),
            max(chunk.num_tokens for chunk in chunks),
            max(chunk.end for chunk in chunks),
        )

    def _run_chunks(self, chunks: list[Chunk]) -> list[SequenceOutput]:
        batch = self.make_batch(chunks)
        hidden = self.forward(batch)  # (T, H)
        starts = batch.query_starts.tolist()
        scores = [self._score_prompt(chunk, hidden[starts[i] :]) for i, chunk in enumerate(chunks)]
        tokens = self._sample(chunks, hidden, starts)
        return [self.table.finish(*done) for done in zip(chunks, tokens, scores, strict=True)]

    def _sample(
        self, chunks: list[Chunk], hidden: torch.Tensor, starts: list[int]
    ) -> list[list[TokenOutput]]:
        """For each chunk its next token, or none while its prompt goes on."""
        sampling = [i for i, chunk in enumerate(chunks) if chunk.samples]
        tokens: list[list[TokenOutput]] = [[] for _ in chunks]
        if not sampling:
            return tokens
        rows = self._tensor([starts[i + 1] - 1 for i in sampling])
        logits = self.decoder.logits(hidden[rows])
        sequences = [chunks[i].sequence for i in sampling]
        drawn = self._sampler.choose(logits, [Draw(s, s.num_tokens, self.depth) for s in sequences])
        for i, token in zip(sampling, drawn, strict=True):
            tokens[i] = [token]
        return tokens

    def _score_prompt(self, chunk: Chunk, hidden: torch.Tensor) -> list[TokenOutput]:
        """Log-probabilities of the prompt tokens that follow this chunk's, from hidden states (Q.., H)."""
        sequence = chunk.sequence
        end = min(chunk.end, sequence.num_prompt_tokens - 1)
        if not sequence.sampling.prompt_logprobs or end <= chunk.start:
            return []
        scores: list[TokenOutput] = []
        for at in range(chunk.start, end, SCORED_ROWS):
            rows = slice(at - chunk.start, min(at + SCORED_ROWS, end) - chunk.start)
            targets = sequence.token_ids[at + 1 : min(at + SCORED_ROWS, end) + 1]
            logits = self.decoder.logits(hidden[rows])
            scores += self._sampler.score(logits, targets, sequence.sampling, self.depth)
        return scores

    def _allocate(self, to: torch.Tensor) -> KVCache:
        heads, block_size = self.decoder.shape.heads, self._config.block_size
        wanted = self._config.kv_cache_bytes
        num_bytes = free_bytes(self._device) if wanted is None else wanted
        num_blocks = num_bytes // block_bytes(self.ops, heads, self.depth, to)
        if num_blocks < 1:
            least = block_bytes(self.ops, heads, self.depth, to)
            raise MemoryError(f"a KV cache of {num_bytes} bytes holds no block of {least} bytes")
        useful = self._config.max_batch_size * -(-self._max_tokens // block_size)
        return KVCache(self.ops, heads, self.depth, min(num_blocks, useful), to)

    def _tensor(self, values: list[int]) -> torch.Tensor:
        return torch.tensor(values, dtype=torch.int64, device=self._device)


def _max_tokens(config: ShardConfig, max_positions: int) -> int:
    """The longest sequence that model and configuration allow."""
    return min(config.max_total_tokens or max_positions, max_positions)
