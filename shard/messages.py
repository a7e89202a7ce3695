"""The wire contract between a router and a shard: frozen structs in one tagged union, msgpack on the wire.

Imports msgspec alone, so that the router can speak to shards without ever loading torch.
A frame is a 4-byte big-endian length and that many bytes of msgpack. Every message names facts, never
positions in the other side's memory: a sequence is its id and attempt, a step its number.
"""

import enum
import struct
from collections.abc import Iterator
from typing import Any, Generic, TypeVar

import msgspec

PROTOCOL_VERSION = 6
COLDEST = 1e-5  # temperatures below are 0, as in vLLM
MAX_FRAME_BYTES = 256 * 1024 * 1024
EMBEDDED_MODEL = "smollm2-135m-instruct"  # the name under which shard.fetch knows it
DRAFT_PLACES = 8  # in a draft that are counted each on their own
MAX_LEXER_STATES = 50_000  # of a grammar, one or two kilobytes each: a shard refuses more


class FinishReason(enum.StrEnum):
    """Why a generation ended, in TGI's words."""

    LENGTH = "length"
    EOS = "eos_token"
    STOP = "stop_sequence"


class Mode(enum.StrEnum):
    """Mode of early exit: which rows leave, and where."""

    FULL = "full"
    SYNCHRONIZED = "synchronized"  # all rows of a batch together (Miao et al.)
    PER_ROW = "per_row"
    CAPPED = "capped"  # every row at the last layer loaded (HELIOS)
    SPECULATIVE = "speculative"  # no row early; drafts are verified at full depth

    @property
    def is_lossless(self) -> bool:
        """Says what full depth says."""
        return self in (Mode.FULL, Mode.SPECULATIVE)


class Fill(enum.StrEnum):
    """How keys and values of layers not run are filled."""

    PROJECT = "project"  # projected from the exit's hidden state (Miao et al.)
    RECOMPUTE = "recompute"  # computed when the row next goes deeper (EE-LLM)


class Criterion(enum.StrEnum):
    """The confidence compared with an exit's threshold: in [0, 1], higher is more confident."""

    SOFTMAX = "softmax"  # the top probability (CALM, Schuster et al. 2022)
    MARGIN = "margin"  # top probability less the second (DREX)
    SIMILARITY = "similarity"  # cosine of the hidden state with that at the boundary before (CALM)
    CLASSIFIER = "classifier"  # a learned probe on the hidden state


class DrafterKind(enum.StrEnum):
    """What makes drafts, cheapest first."""

    TEXT = "text"  # a search in what was said before
    HEAD = "head"  # a trained head behind the model
    EXIT = "exit"  # an exit of the model itself (LayerSkip, Elhoushi et al. 2024)


class DraftSharing(enum.StrEnum):
    """Whose text drafts are made from."""

    REQUEST = "request"  # the request's own alone
    SHARD = "shard"  # of all requests of the shard with the same `cache_salt`


class Sampling(msgspec.Struct, frozen=True, omit_defaults=True):
    """Sampling parameters of one sequence. The defaults are neutral: greedy, nothing filtered.

    Token ids are below the model's vocabulary size.

    The noise at a position is a pure function of (seed, position, token id): no generator state exists, so
    replay, preemption and migration to another shard draw the same tokens.
    """

    temperature: float = 0.0  # 0: greedy
    top_k: int = 0  # 0: off
    top_p: float = 1.0
    typical_p: float = 1.0
    min_p: float = 0.0  # 0: off
    repetition_penalty: float = 1.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    seed: int = 0
    logit_bias: dict[int, float] = {}  # by token id, added before anything else
    allowed_token_ids: list[int] = []  # []: all
    bad_token_ids: list[list[int]] = []  # sequences that no answer may contain
    min_tokens: int = 0  # of the answer, before a token may end it
    stop_token_ids: list[int] = []  # end it, beside the model's own
    num_top_tokens: int = 0  # alternatives reported with each token
    prompt_logprobs: bool = False  # report the log-probability of every prompt token but the first

    def __post_init__(self) -> None:
        if self.temperature < COLDEST:  # scores divided by it would be infinite; greedy is what it means
            msgspec.structs.force_setattr(self, "temperature", 0.0)

    @property
    def names_tokens(self) -> bool:
        """True if it holds token ids, which differ between vocabularies."""
        return bool(self.logit_bias or self.allowed_token_ids or self.bad_token_ids or self.stop_token_ids)


class Grammar(msgspec.Struct, frozen=True, omit_defaults=True):
    """What an answer must be.

    `source` is a grammar for llguidance: in its dialect of Lark, or as JSON. It holds in any vocabulary, but
    for ids of special tokens around calls of tools, which are of this model's. The first `num_begun` tokens
    of an answer begun in another vocabulary may not stand for the whole of its text, as one that spans the
    seam counts as the prompt's: `begun` is that text.
    """

    source: str
    begun: str = ""
    num_begun: int = 0


class NewSequence(msgspec.Struct, frozen=True, omit_defaults=True):
    """A sequence that is new to the shard under this attempt. Its tokens are sent only here.

    `token_ids` is the prompt and, when the sequence is replayed or was preempted, the tokens generated so
    far. Ids rise with arrival: the highest id is the youngest, which is preempted first.
    """

    id: int
    attempt: int
    token_ids: list[int]
    num_prompt_tokens: int
    max_new_tokens: int  # counted from num_prompt_tokens; 0 scores the prompt and generates nothing
    ignore_eos: bool = False
    sampling: Sampling = Sampling()
    exit_threshold: float | None = None  # replaces every exit's own; 1: never leave early
    exact: bool = False  # equal to the full-depth model's output: never leave early
    scores: bool = False  # generate nothing: say what full depth chooses in place of each answer token given
    epoch: int = 0  # epoch of the `Prepare` of the model that it runs on
    grammar: Grammar | None = None  # None: the answer may be anything
    cache_salt: str = ""  # KV, and text for drafts, are shared among sequences of the same salt only


class Work(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A request to compute up to `num_tokens` further tokens of a sequence. A stale attempt is ignored."""

    id: int
    attempt: int
    num_tokens: int


class ShardConfig(msgspec.Struct, frozen=True, omit_defaults=True):
    """Settings of a shard. Validated by the router's configuration; the shard trusts them."""

    model: str  # local folder with config.json and safetensors; for `sim` any name
    device: str = "cpu"  # cpu | cuda | cuda:N | sim
    dtype: str = "auto"  # of weights: float32 | float16 | bfloat16 | auto: by the device
    kv_cache_dtype: str = "auto"  # float32 | float16 | bfloat16 | int8 | auto: as weights are stored
    quantize: str = "auto"  # weights: none | int8 | int4 | auto: a GGUF file's own blocks on CPUs
    num_layers: int | None = None  # load only the first this many; None: all
    block_size: int | None = None  # tokens; None: see `block_tokens`
    kv_cache_bytes: int | None = None  # of the first model; None: sized from free memory. See `Prepare`
    swap_reserve_bytes: int | None = None  # for a model being prepared; None: what the host has free
    max_total_tokens: int | None = None  # longest sequence; None: the model's own limit
    max_batch_size: int = 64  # sequences in one step
    max_batch_tokens: int = 512  # tokens computed in one step
    num_threads: int | None = None  # CPU compute threads; None: all cores divided by the shards
    prefix_cache: bool = False  # what sequences begin alike with is computed once
    exit_mode: Mode = Mode.FULL
    exit_criterion: Criterion = Criterion.SOFTMAX
    exit_threshold: float = 0.9  # default of exits without their own
    exit_layers: list[int] = []  # exits by the model's own norm and head; without `exits`
    exits: str | None = None  # folder with exits.json
    kv_fill: Fill = Fill.RECOMPUTE
    exit_fallback: bool = True  # run at full depth where early exit does not pay
    exit_deferral: bool = True  # per_row: rows that stay may wait for each other
    drafters: list[DrafterKind] = []  # in order; []: no drafts. `exit`, if any, is the last
    draft_sharing: DraftSharing = DraftSharing.SHARD
    draft_head: str | None = None  # folder of the trained head; None: beside the exits, or the project's own
    drafts_always: bool = False  # verify every draft, also where that is measured not to pay
    score_budget: float = 0.02  # share of the time for scores where layers are missing; 0: no scores there
    replay_exits: str | None = None  # file with a distribution of exit layers to draw from
    cache_dir: str | None = None  # where compiled kernels are kept; None: ~/.cache/helios
    cost_model: str | None = None  # `sim`: path of a JSON cost model; None: the built-in one
    watts: float | None = None  # of the device at work, where that cannot be measured
    needs_energy: bool = False  # fail to load without a source of joules

    @property
    def block_tokens(self) -> int:
        """Tokens in a KV block: many on GPUs, which read blocks whole; few on CPUs, for fine allocation."""
        return self.block_size or (256 if self.device.startswith("cuda") else 16)


# Router to shard


class Hello(msgspec.Struct, frozen=True, tag=True):
    """First frame on a connection."""

    protocol: int
    secret: str
    shard: int
    config: ShardConfig


class Step(msgspec.Struct, frozen=True, tag=True):
    """One iteration. New sequences and drops are diffs against the step before; drops come first."""

    number: int
    work: list[Work]
    new: list[NewSequence] = []
    drop: list[tuple[int, int]] = []  # (id, attempt) whose blocks are to be freed: finished or aborted
    clears_cache: bool = False  # first of all, let nothing be found that was computed before


class Ping(msgspec.Struct, frozen=True, tag=True):
    """Answered by `Pong` at once, also while a step runs."""

    number: int


class Prepare(msgspec.Struct, frozen=True, tag=True):
    """Load another model, or another depth of the same one, beside the loaded ones. At most one at a time.

    Answered by `Prepared` or `SwapFailed`. Epochs rise; the model that a shard starts with has epoch 0.
    All models of a shard share what the first one took, weights and KV cache together: `kv_cache_bytes` is
    not asked again. A larger `max_batch_size` makes more blocks useful.
    """

    epoch: int
    config: ShardConfig


class Commit(msgspec.Struct, frozen=True, tag=True):
    """From the next step on, run new sequences on the prepared model; running ones keep theirs.

    Answered by `Committed` or `SwapFailed`, in the order of steps. After a failure the prepared model
    remains: commit again once sequences have ended, or discard it.
    """

    epoch: int


class Discard(msgspec.Struct, frozen=True, tag=True):
    """Drop a model that is prepared, or being prepared, and not committed. Not answered.

    Takes effect at once, also before a waiting `Commit`. An unfinished `Prepare` is answered by `SwapFailed`.
    """

    epoch: int


# Shard to router


class Ready(msgspec.Struct, frozen=True, tag=True):
    """The shard has loaded its model, with these properties."""

    model: str
    version: str  # of weights, types, depth, and exits where these decide: equal ones answer alike
    device: str
    dtype: str  # of weights
    num_layers: int  # the whole model's
    depth: int  # layers loaded
    vocab_size: int
    max_total_tokens: int  # longest sequence it can hold, prompt and answer
    block_size: int
    num_blocks: int
    eos_token_ids: list[int]
    num_parameters: int
    weight_bytes: int
    load_ms: float
    energy: str | None = None  # source of joules, to be shown at the start; None: none
    can_score: bool = True  # can score at full depth, with all layers loaded or streamed
    can_constrain: bool = False  # takes sequences with a grammar
    compute_dtype: str = ""  # of activations and products
    kernels: str = ""  # native | plain | cuda | sim
    weights: str = "none"  # format of matrices: none (as dtype) | int8 | int4 | gguf (the file's own blocks)
    kv_dtype: str = ""  # of the KV cache
    dtype_reason: str = ""  # why these types, and what they cost: one sentence
    warnings: list[str] = []  # sentences on what the exits' certificate does not cover
    exit_thresholds: dict[int, float] = {}  # of exits in use, by layer; 1: not left; {}: no thresholds


class TokenOutput(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """One token with its statistics. `top` is (token id, log-probability), best first.

    A token that a grammar forces is not drawn: it leaves at layer 0, with log-probability 0.
    """

    id: int
    logprob: float
    exit_layer: int
    confidence: float | None = None
    top: tuple[tuple[int, float], ...] = ()

    @property
    def is_forced(self) -> bool:
        """A grammar left no other choice, so that no layer was asked."""
        return self.exit_layer == 0


class Score(msgspec.Struct, frozen=True, array_like=True):
    """Full depth's word on one answer token: what it draws there, and how likely it finds the token."""

    choice: int
    logprob: float  # of the answer's token


class SequenceOutput(msgspec.Struct, frozen=True, omit_defaults=True, gc=False):
    """What a step did for one sequence: 0..n new tokens. `prompt` holds this step's prompt scores."""

    id: int
    attempt: int
    num_computed_tokens: int
    tokens: list[TokenOutput] = []
    prompt: list[TokenOutput] = []
    finish: FinishReason | None = None
    scores: list[Score] = []  # of this step's answer tokens, when it was asked for scores
    num_cached_tokens: int = 0  # that were computed before it came; said once
    error: str = ""  # why it cannot go on, in a sentence: the sequence has ended without an answer


class DraftCount(msgspec.Struct, frozen=True, array_like=True):
    """A drafter's drafts in a step, by place in their draft, up to `DRAFT_PLACES`; the last has the rest."""

    drafted: list[int]
    accepted: list[int]


class ExitReport(msgspec.Struct, frozen=True, omit_defaults=True):
    """Statistics of early exits and drafts in a step."""

    tokens_by_exit: dict[int, int] = {}
    confidence_sum: float = 0.0
    num_confident: int = 0  # number of tokens with a confidence
    breaches: int = 0  # tokens that left below their threshold
    drafts: dict[DrafterKind, DraftCount] = {}
    draft_ms: float = 0.0  # time of drafters
    saved_ms: float = 0.0  # by accepted drafts, less what all drafts cost; estimated
    kv_fills: int = 0  # keys and values projected for layers not run, counted per token and layer
    waiting: int = 0  # rows that wait at the first exit after the step
    segment_ms: list[float] = []
    head_ms: float = 0.0
    fill_ms: float = 0.0

    @property
    def drafted(self) -> int:
        """Drafts verified, each a row of the pass."""
        return sum(sum(count.drafted) for count in self.drafts.values())

    @property
    def accepted(self) -> int:
        return sum(sum(count.accepted) for count in self.drafts.values())


class GrammarReport(msgspec.Struct, frozen=True, omit_defaults=True):
    """What grammars cost since the report before, and what they saved."""

    compiled: int = 0
    compile_ms: float = 0.0
    reused: int = 0  # sequences whose grammar was compiled already
    masks: int = 0  # sets of legal tokens that were computed
    mask_ms: float = 0.0
    forced_tokens: int = 0  # of answers, that no layer was run for


class CacheReport(msgspec.Struct, frozen=True, omit_defaults=True):
    """What the prefix cache did since the report before, and what it holds."""

    queried_tokens: int = 0  # of new sequences
    hit_tokens: int = 0
    evicted_blocks: int = 0  # their content was given up for other content
    cached_blocks: int = 0  # free ones with content
    known_blocks: int = 0  # with content that may be found, in use or free
    cleared_blocks: int = 0  # their content was given up on command
    evicted_age_ms: float = 0.0  # since their last use, summed over those evicted
    reused_blocks: int = 0  # free ones that were found again
    reused_gap_ms: float = 0.0  # since their last use, summed over these


class OlderReport(msgspec.Struct, frozen=True, omit_defaults=True):
    """Statistics of a step on an older model."""

    epoch: int
    num_sequences: int  # sequences holding state on it after the step
    num_free_blocks: int = 0  # free blocks for its sequences
    num_tokens: int = 0  # computed in this step
    ms: float = 0.0
    exits: ExitReport | None = None
    grammar: GrammarReport | None = None


class StepOutput(msgspec.Struct, frozen=True, tag=True):
    """The answer to a `Step`. Times are the shard's own clock, in milliseconds.

    Blocks, sequences, `num_tokens`, `step_ms` and `exits` are of the model that new sequences run on; `older`
    has those that were committed before and still have sequences. One that has none left is freed, and what
    it held becomes blocks: `num_blocks` grows. A sequence that comes for a model that is gone, or that
    has too little memory left for it, is not run on another one, whose vocabulary may not be its own: it is
    named in `gone`.
    """

    number: int
    outputs: list[SequenceOutput]
    preempted: list[tuple[int, int]]  # (id, attempt) whose blocks were taken; to be queued again
    num_free_blocks: int
    num_sequences: int  # sequences holding state after the step
    num_tokens: int = 0  # computed in this step
    step_ms: float = 0.0
    idle_ms: float = 0.0  # device idle between the end of the step before and the start of this one
    exits: ExitReport | None = None  # None: in `full`
    epoch: int = 0
    num_blocks: int | None = None  # None: as in `Ready`
    older: list[OlderReport] = []
    joules: float | None = None  # since the last report, all models together; None: not known
    gone: list[tuple[int, int]] = []  # (id, attempt) to be queued again, for the newest: see above
    grammar: GrammarReport | None = None  # None: no sequence has one
    cache: CacheReport | None = None  # None: there is no prefix cache


class Prepared(msgspec.Struct, frozen=True, tag=True):
    """The requested model is loaded, and can be committed. `phases_ms` has the times of loading."""

    epoch: int
    ready: Ready
    phases_ms: dict[str, float]


class Committed(msgspec.Struct, frozen=True, tag=True):
    """New sequences run on the model from here on. `ready.num_blocks` is its number beside older models.

    If the same model still runs under an older epoch, it continues under this one with its sequences, and the
    prepared one is dropped.
    """

    epoch: int
    ready: Ready
    gap_ms: float  # duration without a running step
    phases_ms: dict[str, float]
    joined: int | None = None  # its older epoch, if it still ran
    kept_blocks: int = 0  # of the prefix cache that new sequences used before, those that they still find
    dropped_tokens: int = 0  # that they find no more


class SwapFailed(msgspec.Struct, frozen=True, tag=True):
    """Nothing has changed. `reason` is one sentence for the operator."""

    epoch: int
    reason: str


class Pong(msgspec.Struct, frozen=True, tag=True):
    number: int


class Failed(msgspec.Struct, frozen=True, tag=True):
    """The shard cannot go on; it ends after this frame. `reason` is one sentence for the operator.

    A permanent failure (no such model, not enough memory) is not worth a restart.
    """

    reason: str
    permanent: bool = False


ToShard = Hello | Step | Ping | Prepare | Commit | Discard
ToRouter = Ready | StepOutput | Pong | Failed | Prepared | Committed | SwapFailed


# Frames

_HEADER = struct.Struct(">I")
_encoder = msgspec.msgpack.Encoder()
_Message = TypeVar("_Message", bound=ToShard | ToRouter)


def frame(message: ToShard | ToRouter) -> bytearray:
    """The bytes of one message on the wire."""
    data = bytearray(_HEADER.size)
    _encoder.encode_into(message, data, _HEADER.size)
    _HEADER.pack_into(data, 0, len(data) - _HEADER.size)
    return data


class FrameReader(Generic[_Message]):
    """Turns bytes from a socket, in any pieces, into messages of the union `messages`."""

    def __init__(self, messages: Any, max_frame_bytes: int = MAX_FRAME_BYTES):
        self.max_frame_bytes = max_frame_bytes
        self._decoder: msgspec.msgpack.Decoder[_Message] = msgspec.msgpack.Decoder(messages)
        self._received = bytearray()

    def feed(self, data: bytes) -> Iterator[_Message]:
        """Yields every complete message. Raises `ValueError` for invalid frames."""
        received = self._received
        received += data
        while len(received) >= _HEADER.size:
            (length,) = _HEADER.unpack_from(received)
            if length > self.max_frame_bytes:
                raise ValueError(f"a frame of {length} bytes; at most {self.max_frame_bytes} are allowed")
            end = _HEADER.size + length
            if len(received) < end:
                return
            message = self._decoder.decode(memoryview(received)[_HEADER.size : end])
            del received[:end]
            yield message
