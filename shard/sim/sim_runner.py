"""A shard without a model: the same bookkeeping, step times from a cost model, reproducible tokens.

For tests of the router at large scale, and for sizing a deployment. No torch.
"""

import hashlib
from collections.abc import Callable, Hashable
from pathlib import Path
from weakref import WeakSet

import msgspec

from shard.clock import Clock
from shard.engine.sequence import Sequence
from shard.engine.sequence_table import Chunk, SequenceTable
from shard.memory import weight_bytes
from shard.messages import Ready, Score, ShardConfig, Step, StepOutput, TokenOutput
from shard.models.model_folder import ModelUnusable, read_config
from shard.served_models import Unwanted
from shard.sim.sim_exits import Leave, PromptClass, SimExits, mix, report_of

_FIRST_TOKEN = 256  # smaller ids are special tokens or single bytes in many vocabularies
_DEFAULT_KV_CACHE_BYTES = 1 << 30
_LOADING_SLICE_MS = 20.0  # interval of checks whether a loading model is still wanted


class CostModel(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Costs and properties of the simulated model. The defaults resemble SmolLM2-135M on two CPU cores.

    Times and KV are those of all layers. Fewer layers save at most 1 - `fixed_share` of a time.
    """

    step_ms: float = 15.0
    token_ms: float = 0.3  # for each token computed
    sequence_ms: float = 0.5  # for each sequence in the step
    context_token_ms: float = 0.0007  # for each context token of a sequence in the step
    fixed_share: float = 0.2  # of step and token times, independent of depth: embedding, LM head
    load_ms: float = 0.0  # of all layers; layers shared with another model cost nothing
    commit_ms: float = 0.0
    num_layers: int = 30
    vocab_size: int = 32_000
    max_total_tokens: int = 8192
    kv_bytes_per_token: int = 23_040
    layer_bytes: int = 7_080_000  # weights of one layer
    base_bytes: int = 56_600_000  # weights beside the layers
    logprob: float = -0.5  # of every token
    mean_answer_tokens: float | None = None  # None: no end token is ever drawn
    eos_token_id: int = 2
    classes: tuple[PromptClass, ...] = (PromptClass({10: 0.4, 20: 0.35}),)  # see sim_exits.py
    fails_on_load: str | None = None  # the error message of loading
    fails_on_token: int | None = None  # computing this token ends the shard
    hangs_on_token: int | None = None  # computing this token takes forever

    def duration_ms(self, chunks: list[Chunk], layers: list[int] | None = None) -> float:
        """Milliseconds of a step with these chunks, each through `layers` layers; by default through all."""
        shares = [self._share(layer) for layer in layers or [self.num_layers] * len(chunks)]
        token_ms = sum(c.num_tokens * share for c, share in zip(chunks, shares, strict=True)) * self.token_ms
        context = sum(c.end * share for c, share in zip(chunks, shares, strict=True)) * self.context_token_ms
        fixed_ms = self.step_ms * max(shares, default=1.0) + len(chunks) * self.sequence_ms
        return fixed_ms + token_ms + context

    def next_token(self, previous: int, position: int, seed: int) -> int:
        """The token that follows `previous` at `position`: a pure function, so replays can be checked."""
        draw = mix(previous, position, seed)
        if self.mean_answer_tokens is not None and draw % 2**20 < 2**20 / self.mean_answer_tokens:
            return self.eos_token_id
        return _FIRST_TOKEN + (draw >> 20) % (self.vocab_size - _FIRST_TOKEN)

    def wrong_token(self, right: int) -> int:
        """The token of an exit that disagrees."""
        return _FIRST_TOKEN + (right + 1) % (self.vocab_size - _FIRST_TOKEN)

    def _share(self, layer: int) -> float:
        """Share of a full-depth time that is spent on `layer` layers."""
        return self.fixed_share + (1 - self.fixed_share) * layer / self.num_layers


class SimRunner:
    """Runs steps in simulated time. Raises `ValueError` or `OSError` for an unreadable cost model.

    `total_bytes` bounds weights and KV cache; without it the KV cache has the configuration's size.
    """

    def __init__(self, config: ShardConfig, clock: Clock | None = None, total_bytes: int | None = None):
        content = Path(config.cost_model).read_bytes() if config.cost_model else b"{}"
        costs = self._costs = _decode_costs(content, config.cost_model)
        if costs.fails_on_load is not None:
            raise OSError(costs.fails_on_load)
        self.clock = clock or Clock()
        self._config = config
        self.layers_of = config.model, config.cost_model, config.block_tokens  # equal ones share layers' KV
        self.depth = min(config.num_layers or costs.num_layers, costs.num_layers)
        layers: dict[Hashable, int] = {(config.model, i): costs.layer_bytes for i in range(self.depth)}
        self.weights = layers | {config.model: costs.base_bytes}
        self.block_bytes = -(-config.block_tokens * costs.kv_bytes_per_token * self.depth // costs.num_layers)
        num_bytes = config.kv_cache_bytes or _DEFAULT_KV_CACHE_BYTES
        if total_bytes is not None:
            num_bytes = total_bytes - weight_bytes([self.weights])
        self.max_blocks = num_bytes // self.block_bytes
        if self.max_blocks < 1:
            raise MemoryError(f"{num_bytes} bytes hold no block of {self.block_bytes} bytes.")
        wanted_tokens = config.max_total_tokens or costs.max_total_tokens
        max_total_tokens = min(wanted_tokens, self.max_blocks * config.block_tokens)
        self.table = SequenceTable(
            self.max_blocks,
            config.block_tokens,
            [costs.eos_token_id],
            max_total_tokens,
            caches_prefixes=config.prefix_cache,
            clock=self.clock,
        )
        self.resizes_freely = True
        self.phases_ms: dict[str, float] = {}
        self._exits = SimExits(config, costs.classes, costs.num_layers, costs.vocab_size)
        self._leaves: dict[int, Leave] = {}  # of the running step, by sequence
        self._is_new = True
        self._last_end_ms: float | None = None  # of the last step, while sequences wait for the next
        self._version = f"{hashlib.sha256(content + config.model.encode()).hexdigest()[:12]}-{self.depth}"

    @property
    def fingerprint(self) -> str:
        config = msgspec.structs.replace(self._config, num_layers=self.depth, kv_cache_bytes=None)
        return f"{self._version} {msgspec.json.encode(config).decode()}"

    def load(self, known: set[Hashable], is_wanted: Callable[[], bool]) -> None:
        """Spend the time of reading the layers that are not known. Raises `Unwanted`."""
        started_ms = self.clock.now_ms()
        num_missing = sum(part not in known for part in self.weights if isinstance(part, tuple))
        left_ms = self._costs.load_ms * num_missing / self._costs.num_layers
        while left_ms > 0:
            if not is_wanted():
                raise Unwanted
            self.clock.pass_ms(min(left_ms, _LOADING_SLICE_MS))
            left_ms -= _LOADING_SLICE_MS
        self.phases_ms = {"read": self.clock.now_ms() - started_ms}

    def inherit(self, other: "SimRunner", max_blocks: int) -> int:
        """See `Engine`."""
        if self.layers_of != other.layers_of or self.depth > other.depth:
            return 0
        return len(self.table.inherit(other.table, max_blocks))

    def resize(self, num_blocks: int) -> None:
        """See `Engine`."""
        if self._is_new:
            self.clock.pass_ms(self._costs.commit_ms)
        self._is_new = False
        self.table.pool.limit(num_blocks)

    def ready(self) -> Ready:
        return Ready(
            model=self._config.model,
            version=self._version,
            device="sim",
            dtype=self._config.dtype.replace("auto", "bfloat16"),
            num_layers=self._costs.num_layers,
            depth=self.depth,
            vocab_size=max(self._costs.vocab_size, _vocab_size(self._config.model)),
            max_total_tokens=self.table.max_total_tokens,
            block_size=self.table.block_size,
            num_blocks=self.table.pool.num_blocks,
            eos_token_ids=[self._costs.eos_token_id],
            num_parameters=weight_bytes([self.weights]) // 2,
            weight_bytes=weight_bytes([self.weights]),
            load_ms=sum(self.phases_ms.values()),
            can_score=self.depth == self._costs.num_layers,
            exit_thresholds=self._exits.thresholds,
        )

    def run(self, step: Step) -> StepOutput:
        """Spend a step's time, then generate its tokens."""
        started_ms = self.clock.now_ms()
        idle_ms = started_ms - self._last_end_ms if self._last_end_ms is not None else 0.0
        chunks, preempted = self.table.plan(step)
        self._meet_trouble(chunks)
        self._leaves = self._exits.leaves([chunk.sequence for chunk in chunks if chunk.samples])
        if chunks:
            layers = [self._layer(chunk) for chunk in chunks]
            self.clock.pass_ms(self._costs.duration_ms(chunks, layers))
        outputs = [
            self.table.finish(chunk, self.sample(chunk), self._score_prompt(chunk), self._score_answer(chunk))
            for chunk in chunks
        ]
        ended_ms = self.clock.now_ms()
        self._last_end_ms = ended_ms if len(self.table) else None
        step_ms = ended_ms - started_ms
        return StepOutput(
            step.number,
            outputs,
            preempted,
            num_free_blocks=self.table.pool.num_free,
            num_sequences=len(self.table),
            num_tokens=sum(chunk.num_tokens for chunk in chunks),
            step_ms=step_ms,
            idle_ms=idle_ms,
            exits=report_of(self._leaves.values(), step_ms) if chunks and self._exits.reports else None,
            cache=self.table.take_report(),
        )

    def _layer(self, chunk: Chunk) -> int:
        """The layers that a chunk runs; prompts run all."""
        leave = self._leaves.get(chunk.sequence.id)
        return self.depth if leave is None else leave.layer

    def sample(self, chunk: Chunk) -> list[TokenOutput]:
        sequence = chunk.sequence
        if not chunk.samples:
            return []
        leave = self._leaves[sequence.id]
        token = self._next_token(sequence, sequence.num_tokens)
        if not leave.is_right:
            token = self._costs.wrong_token(token)
        top = self._top(sequence.sampling.num_top_tokens)
        return [TokenOutput(token, self._costs.logprob, leave.layer, leave.confidence, top)]

    def _next_token(self, sequence: Sequence, position: int) -> int:
        before, seed = sequence.token_ids[position - 1], sequence.sampling.seed
        token = self._costs.next_token(before, position, seed)
        is_early = position - sequence.num_prompt_tokens < sequence.sampling.min_tokens
        goes_on = sequence.ignore_eos or is_early
        return _FIRST_TOKEN if goes_on and token == self._costs.eos_token_id else token

    def _score_prompt(self, chunk: Chunk) -> list[TokenOutput]:
        """Scores of the prompt tokens that follow those of the chunk."""
        sequence = chunk.sequence
        if not sequence.sampling.prompt_logprobs:
            return []
        scored = sequence.token_ids[chunk.start + 1 : min(chunk.end + 1, sequence.num_prompt_tokens)]
        top = self._top(sequence.sampling.num_top_tokens)
        return [TokenOutput(token, self._costs.logprob, self.depth, None, top) for token in scored]

    def _score_answer(self, chunk: Chunk) -> list[Score]:
        """The simulated full depth's scores of the answer tokens that follow those of the chunk."""
        sequence = chunk.sequence
        if not sequence.scores:
            return []
        first = max(chunk.start + 1, sequence.num_prompt_tokens)
        positions = range(first, min(chunk.end + 1, sequence.num_tokens))
        return [Score(self._next_token(sequence, position), self._costs.logprob) for position in positions]

    def _top(self, num_top_tokens: int) -> tuple[tuple[int, float], ...]:
        return tuple((_FIRST_TOKEN + rank, -1.0 - rank) for rank in range(num_top_tokens))

    def _meet_trouble(self, chunks: list[Chunk]) -> None:
        """Fail or hang on the cost model's tokens, as a poisonous request could make a real shard do."""
        trouble = (self._costs.fails_on_token, self._costs.hangs_on_token)
        if trouble == (None, None):
            return
        met = {id for chunk in chunks for id in chunk.sequence.token_ids[chunk.start : chunk.end]}
        if self._costs.fails_on_token in met:
            raise RuntimeError(f"token {self._costs.fails_on_token} was to be computed")
        while self._costs.hangs_on_token in met:
            self.clock.pass_ms(3_600_000)


class SimLoader:
    """Makes the simulated models of one shard."""

    def __init__(self, clock: Clock | None = None):
        self._clock = clock or Clock()
        self._made: WeakSet[SimRunner] = WeakSet()

    def first(self, config: ShardConfig) -> tuple[SimRunner, int]:
        """See `Loader`."""
        runner = self._load(SimRunner(config, self._clock), lambda: True)
        return runner, weight_bytes([runner.weights]) + runner.max_blocks * runner.block_bytes

    def beside(self, config: ShardConfig, total_bytes: int, is_wanted: Callable[[], bool]) -> SimRunner:
        """See `Loader`."""
        return self._load(SimRunner(config, self._clock, total_bytes), is_wanted)

    def _load(self, runner: SimRunner, is_wanted: Callable[[], bool]) -> SimRunner:
        runner.load({part for other in self._made for part in other.weights}, is_wanted)
        self._made.add(runner)
        return runner


def _vocab_size(model: str) -> int:
    """Vocabulary size of the simulated model's folder, whose tokenizer encodes prompts; 0 without one."""
    try:
        return int(read_config(Path(model)).get("vocab_size", 0))
    except (ModelUnusable, OSError):
        return 0


def _decode_costs(content: bytes, path: str | None) -> CostModel:
    try:
        return msgspec.json.decode(content, type=CostModel)
    except msgspec.DecodeError as error:
        raise ValueError(f"The cost model {path} cannot be read: {error}.") from error
