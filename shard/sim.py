"""A shard without a model: same bookkeeping, step times from a cost model, tokens that anybody can compute.

Lets the router be tested at scales that no test machine has, and a deployment be sized. No torch.
"""

import hashlib
import time
from pathlib import Path

import msgspec

from shard.batch import Chunk, SequenceTable
from shard.messages import Ready, Score, ShardConfig, Step, StepOutput, TokenOutput
from shard.sequence import Sequence

_FIRST_TOKEN = 256  # smaller ids are special tokens or single bytes in many vocabularies
_DEFAULT_KV_CACHE_BYTES = 1 << 30


class CostModel(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a step costs and what the model is like. The defaults resemble SmolLM2-135M on two CPU cores."""

    step_ms: float = 15.0
    token_ms: float = 0.3  # for each token computed
    sequence_ms: float = 0.5  # for each sequence in the step
    context_token_ms: float = 0.0007  # for each token that a sequence in the step looks back on
    load_ms: float = 0.0
    num_layers: int = 30
    vocab_size: int = 32_000
    max_total_tokens: int = 8192
    kv_bytes_per_token: int = 23_040
    mean_answer_tokens: float | None = None  # None: no end token is ever drawn
    eos_token_id: int = 2
    fails_on_token: int | None = None  # computing this token ends the shard
    hangs_on_token: int | None = None  # computing this token takes forever

    def duration_ms(self, chunks: list[Chunk]) -> float:
        """Time that a step with these chunks takes."""
        num_tokens = sum(chunk.num_tokens for chunk in chunks)
        num_context_tokens = sum(chunk.end for chunk in chunks)
        variable_ms = num_tokens * self.token_ms + len(chunks) * self.sequence_ms
        return self.step_ms + variable_ms + num_context_tokens * self.context_token_ms

    def next_token(self, previous: int, position: int, seed: int) -> int:
        """The token that follows `previous` at `position`: a pure function, so replays can be checked."""
        draw = _mix(previous, position, seed)
        if self.mean_answer_tokens is not None and draw % 2**20 < 2**20 / self.mean_answer_tokens:
            return self.eos_token_id
        return _FIRST_TOKEN + (draw >> 20) % (self.vocab_size - _FIRST_TOKEN)


class SimRunner:
    """Runs steps in simulated time. Raises `ValueError` or `OSError` for a cost model that cannot be read."""

    def __init__(self, config: ShardConfig):
        started = time.perf_counter()
        content = Path(config.cost_model).read_bytes() if config.cost_model else b"{}"
        self._costs = _decode_costs(content, config.cost_model)
        num_bytes = config.kv_cache_bytes or _DEFAULT_KV_CACHE_BYTES
        num_blocks = num_bytes // (config.block_size * self._costs.kv_bytes_per_token)
        max_total_tokens = min(
            config.max_total_tokens or self._costs.max_total_tokens, num_blocks * config.block_size
        )
        self._table = SequenceTable(
            num_blocks, config.block_size, [self._costs.eos_token_id], max_total_tokens
        )
        self._config = config
        self._last_end: float | None = None  # of the last step, while sequences wait for the next
        self._version = hashlib.sha256(content).hexdigest()[:12]
        time.sleep(self._costs.load_ms / 1000)
        self._load_ms = (time.perf_counter() - started) * 1000

    def ready(self) -> Ready:
        depth = min(self._config.num_layers or self._costs.num_layers, self._costs.num_layers)
        return Ready(
            model=self._config.model,
            version=self._version,
            device="sim",
            dtype=self._config.dtype,
            num_layers=self._costs.num_layers,
            depth=depth,
            vocab_size=self._costs.vocab_size,
            max_total_tokens=self._table.max_total_tokens,
            block_size=self._table.block_size,
            num_blocks=self._table.pool.num_blocks,
            eos_token_ids=[self._costs.eos_token_id],
            num_parameters=0,
            weight_bytes=0,
            load_ms=self._load_ms,
        )

    def run(self, step: Step) -> StepOutput:
        """Spend a step's time, then make its tokens."""
        started = time.perf_counter()
        idle_ms = (started - self._last_end) * 1000 if self._last_end is not None else 0.0
        chunks, preempted = self._table.plan(step)
        self._meet_trouble(chunks)
        if chunks:
            time.sleep(self._costs.duration_ms(chunks) / 1000)
        outputs = [
            self._table.finish(
                chunk, self._sample(chunk), self._score_prompt(chunk), self._score_answer(chunk)
            )
            for chunk in chunks
        ]
        ended = time.perf_counter()
        self._last_end = ended if len(self._table) else None
        return StepOutput(
            step.number,
            outputs,
            preempted,
            num_free_blocks=self._table.pool.num_free,
            num_sequences=len(self._table),
            num_tokens=sum(chunk.num_tokens for chunk in chunks),
            step_ms=(ended - started) * 1000,
            idle_ms=idle_ms,
        )

    def _sample(self, chunk: Chunk) -> list[TokenOutput]:
        sequence = chunk.sequence
        if not chunk.samples:
            return []
        token = self._next_token(sequence, sequence.num_tokens)
        return [self._output(token, sequence.sampling.num_top_tokens)]

    def _next_token(self, sequence: Sequence, position: int) -> int:
        before, seed = sequence.token_ids[position - 1], sequence.sampling.seed
        token = self._costs.next_token(before, position, seed)
        return _FIRST_TOKEN if sequence.ignore_eos and token == self._costs.eos_token_id else token

    def _score_prompt(self, chunk: Chunk) -> list[TokenOutput]:
        """Scores of the prompt tokens that follow those of the chunk."""
        sequence = chunk.sequence
        if not sequence.sampling.prompt_logprobs:
            return []
        scored = sequence.token_ids[chunk.start + 1 : min(chunk.end + 1, sequence.num_prompt_tokens)]
        return [self._output(token, sequence.sampling.num_top_tokens) for token in scored]

    def _score_answer(self, chunk: Chunk) -> list[Score]:
        """What the simulated model says in place of the answer tokens that follow those of the chunk."""
        sequence = chunk.sequence
        if not sequence.scores:
            return []
        first = max(chunk.start + 1, sequence.num_prompt_tokens)
        positions = range(first, min(chunk.end + 1, sequence.num_tokens))
        return [Score(self._next_token(sequence, position), -0.5) for position in positions]

    def _output(self, token: int, num_top_tokens: int) -> TokenOutput:
        top = [(_FIRST_TOKEN + rank, -1.0 - rank) for rank in range(num_top_tokens)]
        return TokenOutput(token, -0.5, self._costs.num_layers, None, top)

    def _meet_trouble(self, chunks: list[Chunk]) -> None:
        """Fail or hang where the cost model says so, as a poisonous request would make a real shard do."""
        trouble = (self._costs.fails_on_token, self._costs.hangs_on_token)
        if trouble == (None, None):
            return
        met = {id for chunk in chunks for id in chunk.sequence.token_ids[chunk.start : chunk.end]}
        if self._costs.fails_on_token in met:
            raise RuntimeError(f"token {self._costs.fails_on_token} was to be computed")
        while self._costs.hangs_on_token in met:
            time.sleep(3600)


def _decode_costs(content: bytes, path: str | None) -> CostModel:
    try:
        return msgspec.json.decode(content, type=CostModel)
    except msgspec.DecodeError as error:
        raise ValueError(f"The cost model {path} cannot be read: {error}.") from error


def _mix(*numbers: int) -> int:
    """A well-mixed 64-bit number of a few small ones."""
    mixed = 0x9E3779B97F4A7C15
    for number in numbers:
        mixed = (mixed ^ number) * 0xBF58476D1CE4E5B9 % 2**64
        mixed ^= mixed >> 31
    return mixed
