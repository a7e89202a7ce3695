"""One request as the router sees it, from arrival to its last event, with its own output queue.

Knows no HTTP, no sockets and no clock: times are arguments, in seconds of the event loop's clock.
"""

import asyncio
import enum
import functools
from array import array
from collections import deque
from collections.abc import Callable

import msgspec

from router.catalog.served_model import ModelIdentity, Requirements, Segment, ServedModel
from router.scheduling.moves import MAX_MOVES, Move, What
from router.scheduling.prefix_index import block_keys
from router.text.chat_template import ChatTemplateError
from router.text.prompt import Prompt
from router.text.prompt_class import PromptClass
from router.text.tokenizer import Detokenizer, Token, Tokenizer
from shard.messages import FinishReason, Grammar, Sampling, TokenOutput

_MAX_EXPECTED_TOKENS = 256  # few answers use all of `max_new_tokens`


class Status(enum.Enum):
    WAITING = "waiting"  # in the queue, holds nothing on a shard
    RUNNING = "running"  # a shard holds state for it
    FINISHED = "finished"


class GenerationFailed(Exception):
    """A generation that ended without an answer. `kind` is TGI's error_type; `status` the HTTP status."""

    def __init__(
        self, message: str, kind: str = "generation", status: int = 424, retry_after_s: int | None = None
    ):
        super().__init__(message)
        self.kind = kind
        self.status = status
        self.retry_after_s = retry_after_s


class Spec(msgspec.Struct, frozen=True, kw_only=True):
    """What a client asked for, validated, with every default filled in."""

    prompt_token_ids: list[int]
    tokenizer: Tokenizer  # that made the ids
    prompt: Prompt | None = None  # the ids' source; None: the client gave ids
    max_new_tokens: int
    sampling: Sampling = Sampling()
    stop: tuple[str, ...] = ()
    ignore_eos: bool = False
    priority: int = 0  # higher goes first
    deadline_s: float | None = None  # loop time by which it must have started
    exit_threshold: float | None = None
    exact: bool = False
    grammar: str = ""  # what the answer must be, for llguidance, in no vocabulary's token ids; "": anything
    cache_salt: str = ""  # keys and values are shared with requests of the same salt only
    label: str = ""  # the client's own request id, for logs and /ops/requests

    @property
    def is_constrained(self) -> bool:
        """The answer must follow a grammar."""
        return bool(self.grammar) or (self.prompt is not None and self.prompt.tools is not None)


class Finished(msgspec.Struct, frozen=True):
    """The end of a generation. `text` is the whole answer, stop included."""

    reason: FinishReason
    text: str
    stop_at: int | None = None  # where in the text the string or token that stopped it begins


class Timeline(msgspec.Struct):
    """Loop times in seconds; None: not yet."""

    arrived: float  # in the queue
    started: float | None = None  # first put into a step
    first_token: float | None = None
    last_token: float | None = None
    finished: float | None = None
    received: float | None = None  # by HTTP, before it was checked and encoded


class Request:
    """A request and its output. The scheduler runs it, the engine adds tokens, the API reads by `take()`."""

    def __init__(self, id: int, spec: Spec, arrived: float):
        self.id = id
        self.spec = spec
        self.tokenizer = spec.tokenizer  # of the model that runs it, or is to run it
        self.prompt_token_ids = spec.prompt_token_ids
        self.timeline = Timeline(arrived)
        self.traceparent = ""  # the caller's span, as W3C Trace Context writes it
        self.status = Status.WAITING
        self.shard: int | None = None
        self.attempt = 0
        self.num_preemptions = 0
        self.num_passed_over = 0  # later requests that began first, for what was computed of them
        self.num_shard_deaths = 0
        self.num_cached_tokens = 0  # of the prompt, that its first shard had computed before
        self.num_computed_tokens = 0  # as reported by the shard
        self.num_in_flight_tokens = 0  # asked for in steps that the shard has not answered
        self.outputs: list[TokenOutput] = []
        self.prompt_scores: list[TokenOutput] = []
        self.served_model: ServedModel | None = None  # the model that runs it
        self.segments: list[Segment] = []
        self.moves: deque[Move] = deque(maxlen=MAX_MOVES)
        self.lost_affinity = False  # the model that began it is no longer on its shard
        self.outcome: FinishReason | GenerationFailed | None = None
        self._num_outputs_at_death: int | None = None
        self._reencoded: list[int] = []  # ids of the answer's part that another tokenizer's model wrote
        self._reencoded_text = ""  # of that part
        self._num_reencoded = 0  # number of `outputs` in that part
        self._num_added = 0  # ids of that part beyond those
        self._num_characters = 0  # of the answer's text so far
        self._num_characters_before = 0  # the same before its latest token
        self._detokenizer: Detokenizer = spec.tokenizer.detokenizer(spec.prompt_token_ids)
        self._block_keys: tuple[tuple[int, str, int], array[int]] | None = None  # and what they are of
        self.events: list[Token | Finished] = []  # not taken yet
        self.on_news: Callable[[], None] | None = None  # called when `events` has grown, or it has failed

    @property
    def token_ids(self) -> list[int]:
        """Prompt and answer so far in ids of `tokenizer`; a replay starts from these."""
        since = [output.id for output in self.outputs[self._num_reencoded :]]
        return self.prompt_token_ids + self._reencoded + since

    @property
    def num_prompt_tokens(self) -> int:
        return len(self.prompt_token_ids)

    @property
    def num_tokens(self) -> int:
        return len(self.prompt_token_ids) + len(self.outputs) + self._num_added

    @property
    def max_new_tokens(self) -> int:
        """Limit of tokens after the prompt, in ids of `tokenizer`."""
        return self.spec.max_new_tokens + self._num_added

    @property
    def sampling(self) -> Sampling:
        """Sampling parameters, adjusted to the answer in ids of `tokenizer`."""
        sampling = self.spec.sampling
        if not sampling.min_tokens or not self._num_added:
            return sampling
        return msgspec.structs.replace(sampling, min_tokens=max(0, sampling.min_tokens + self._num_added))

    @property
    def grammar(self) -> Grammar | None:
        """The answer's grammar, with the part of the answer that was re-encoded."""
        prompt = self.spec.prompt
        held, model = self.spec.grammar, self.served_model
        vocab_size = None if model is None else model.ready.vocab_size
        source = held if prompt is None else prompt.grammar(self.tokenizer, held, vocab_size)
        return Grammar(source, self._reencoded_text, len(self._reencoded)) if source else None

    @property
    def requirements(self) -> Requirements:
        """Conditions for a model to start or continue the request."""
        affinity = self.segments[-1].identity if self.segments and not self.lost_affinity else None
        is_bound = self.spec.prompt is None or self.spec.sampling.names_tokens
        vocabulary = self.tokenizer.digest if is_bound else None
        prompts = "" if self.spec.exact else self.prompt_class  # exact answers use no exits
        return Requirements(affinity, vocabulary, self.spec.exact, prompts, self.spec.is_constrained)

    @functools.cached_property
    def prompt_class(self) -> PromptClass:
        """Guessed class of the prompt; chat for token ids."""
        return PromptClass.CHAT if self.spec.prompt is None else self.spec.prompt.prompt_class

    @property
    def written_by(self) -> ModelIdentity | None:
        """The model that wrote the whole answer; None without one, or with several."""
        return self.segments[0].identity if len(self.segments) == 1 else None

    @property
    def num_pending_tokens(self) -> int:
        """Number of known tokens neither computed nor in flight.

        Once none is left, every step in flight makes a token that is not known yet: 0 with one such token on
        its way, -1 with two.
        """
        return self.num_tokens - self.num_computed_tokens - self.num_in_flight_tokens

    @property
    def num_expected_tokens(self) -> int:
        """Tokens that will most likely be generated yet."""
        return min(_MAX_EXPECTED_TOKENS, self.spec.max_new_tokens - len(self.outputs))

    @property
    def num_outstanding_tokens(self) -> int:
        """Remaining work: tokens to compute, and tokens expected to be generated."""
        return self.num_tokens - self.num_computed_tokens + self.num_expected_tokens

    @property
    def num_wanted_tokens(self) -> int:
        """Tokens to ask for in the next step: those pending, or one more.

        0 if the steps in flight will end it by length, should each make a token. A step makes no token for a
        sequence that waits at an exit; with none in flight it is asked for again.
        """
        num_outputs, num_in_flight = len(self.outputs), self.num_in_flight_tokens
        num_pending = self.num_tokens - self.num_computed_tokens - num_in_flight
        if num_pending > 0:
            return num_pending
        goes_on = num_in_flight == 0 or num_outputs + 1 - num_pending < self.spec.max_new_tokens
        return int(goes_on)

    @property
    def has_started(self) -> bool:
        return self.timeline.started is not None

    @property
    def is_suspect(self) -> bool:
        """It ran when a shard died and has made no token since: it may have caused the death."""
        return self._num_outputs_at_death == len(self.outputs)

    @property
    def mean_exit_layer(self) -> float | None:
        """Mean exit layer of the tokens drawn; None while there are none."""
        layers = [output.exit_layer for output in self.outputs if not output.is_forced]
        return sum(layers) / len(layers) if layers else None

    def may_move_to(self, served_model: ServedModel) -> bool:
        """It can continue on another model, if need be as a migration."""
        if (
            not served_model.takes(self.requirements)
            or self.num_tokens >= served_model.ready.max_total_tokens
        ):
            return False
        prompt = self.spec.prompt
        tokenizer = served_model.tokenizer
        return prompt is None or self.reads_alike(tokenizer) or prompt.is_readable(tokenizer)

    def reads_alike(self, tokenizer: Tokenizer) -> bool:
        """Prompt and answer have the same ids under this tokenizer."""
        prompt = self.spec.prompt
        return prompt is None or prompt.reads_alike(self.tokenizer, tokenizer)

    def encoded_by(self, tokenizer: Tokenizer) -> tuple[list[int], list[int]]:
        """Prompt and answer so far in another tokenizer's ids, for `switch`. Safe on any thread while queued.

        Raises `GenerationFailed` when the tokenizer's template refuses the conversation.
        """
        assert self.spec.prompt is not None
        try:
            return self.spec.prompt.encoded(tokenizer, self._detokenizer.marked_text)
        except ChatTemplateError as error:
            raise GenerationFailed(f"The model was changed, and {error}", "validation", 422) from None

    def switch(self, tokenizer: Tokenizer, encoded: tuple[list[int], list[int]]) -> None:
        """Continue with prompt and answer as `encoded` by this tokenizer."""
        self.prompt_token_ids, self._reencoded = encoded
        self._num_reencoded, self._reencoded_text = len(self.outputs), self._detokenizer.marked_text
        self._num_added = len(self._reencoded) - self._num_reencoded
        self.prompt_scores.clear()
        self.tokenizer = tokenizer
        self._detokenizer.switch(tokenizer)

    def check_fits(self, served_model: ServedModel) -> None:
        """Raises `GenerationFailed` if it is too long for a model, or has a token outside its vocabulary."""
        most = served_model.ready.max_total_tokens
        if self.num_tokens >= most:
            name = served_model.target.name
            error = (
                f"The prompt has {self.num_tokens} tokens; the maximum context length of {name} is {most}."
            )
            raise GenerationFailed(error, "validation", 422)
        if max(self.prompt_token_ids) >= served_model.ready.vocab_size:
            error = f"The prompt has a token that {served_model.target.name} does not know."
            raise GenerationFailed(error, "validation", 422)

    def start(self, shard: int, served_model: ServedModel, now: float) -> None:
        """Enter a shard's batch, for the first time or again."""
        self.status = Status.RUNNING
        self.shard = shard
        self.served_model = served_model
        self.lost_affinity = False
        self._begin_segment(served_model)
        self._note_start(shard, served_model, now)
        if self.timeline.started is None:
            self.timeline.started = now

    def start_over(self) -> None:
        """Return to the queue: a shard's computed state is lost, the tokens received are kept."""
        self.status = Status.WAITING
        self.shard = None
        self.attempt += 1
        self.num_computed_tokens = 0
        self.num_in_flight_tokens = 0
        if not self._has_prompt_scores:
            self.prompt_scores.clear()

    def note_return(self, what: What, now: float) -> None:
        """Note why it has just left its shard for the queue."""
        last = self.moves[-1]
        num_tokens = len(self.outputs)
        self.moves.append(msgspec.structs.replace(last, at=now, what=what, num_generated_tokens=num_tokens))

    def note_shard_death(self) -> None:
        """Note that a shard died while running it: it may be the cause."""
        self.num_shard_deaths += 1
        self._num_outputs_at_death = len(self.outputs)

    def block_keys(self, block_size: int) -> "array[int]":
        """Keys of the full blocks of its tokens so far, for a `PrefixIndex`; made once while it waits."""
        known = (block_size, self.tokenizer.digest, self.num_tokens)
        if self._block_keys is None or self._block_keys[0] != known:
            self._block_keys = known, block_keys(self.spec.cache_salt, self.token_ids, block_size)
        return self._block_keys[1]

    def note_cached(self, num_tokens: int) -> None:
        """Note what a shard had computed of it before it came; what it finds again of itself is no news."""
        if self.attempt == 0:
            self.num_cached_tokens = max(self.num_cached_tokens, num_tokens)

    def put_prompt(self, scores: list[TokenOutput]) -> None:
        """Take scores of the prompt's next tokens. Those repeated by a replay are ignored."""
        if not self._has_prompt_scores:
            self.prompt_scores += scores

    def put(self, outputs: list[TokenOutput], finish: FinishReason | None, now: float) -> bool:
        """Take tokens from a shard; True when the request has ended.

        A stop string may end it within `outputs`; later tokens are dropped.
        """
        if outputs:
            if self.timeline.first_token is None:
                self.timeline.first_token = now
            self.timeline.last_token = now
        for output in outputs:
            self.outputs.append(output)
            self._num_characters_before = self._num_characters
            piece = self._detokenizer.push(output)
            self._num_characters += 0 if piece.special else len(piece.text)
            self.events.append(piece)
            stop = self._detokenizer.find_stop(self.spec.stop)
            if stop is not None and len(self.outputs) > self.spec.sampling.min_tokens:
                self._finish(FinishReason.STOP, now, self._stop_at(stop))
                return True
        if finish is not None:
            self._finish(finish, now, self._num_characters_before if finish is FinishReason.STOP else None)
        elif outputs:
            self._tell_reader()
        return finish is not None

    def fail(self, error: GenerationFailed, now: float) -> None:
        """End it with an error; the reader of `take()` gets it raised."""
        self._end(error, now)
        self._tell_reader()

    async def take(self) -> list[Token | Finished]:
        """Wait for news and take all there is: tokens, at the end one `Finished`, then nothing more.

        Raises `GenerationFailed`, once the tokens before it are taken.
        """
        await self._until(lambda: bool(self.events) or self.outcome is not None)
        return self.take_now()

    async def take_all(self) -> list[Token | Finished]:
        """Wait for the end and take all there is. Raises `GenerationFailed`."""
        await self._until(lambda: self.outcome is not None)
        if isinstance(self.outcome, GenerationFailed):
            raise self.outcome
        return self.take_now()

    def take_now(self) -> list[Token | Finished]:
        """Take the news there is, perhaps none. Raises `GenerationFailed`, once those before it are taken."""
        news, self.events = self.events, []
        if not news and isinstance(self.outcome, GenerationFailed):
            raise self.outcome
        return news

    @property
    def _has_prompt_scores(self) -> bool:
        return len(self.prompt_scores) >= self.num_prompt_tokens - 1

    def _begin_segment(self, served_model: ServedModel) -> None:
        """Begin a segment of a model; an empty last segment is dropped."""
        self._forget_idle_segment()
        if not self.segments or self.segments[-1].identity != served_model.identity:
            self.segments.append(served_model.segment(len(self.outputs)))

    def _note_start(self, shard: int, served_model: ServedModel, now: float) -> None:
        model, depth, num_tokens = served_model.target.name, served_model.ready.depth, len(self.outputs)
        what = What.STARTED
        if self.moves:
            last = self.moves[-1]
            stayed = (last.shard, last.model, last.depth) == (shard, model, depth)
            what = What.RESUMED if stayed else What.MOVED
        self.moves.append(Move(now, what, shard, model, depth, num_tokens))

    def _forget_idle_segment(self) -> None:
        if self.segments and self.segments[-1].from_token == len(self.outputs):
            self.segments.pop()

    def _stop_at(self, stop: str) -> int | None:
        """Where in the text the completed stop string begins. None if it includes special tokens."""
        at = self._detokenizer.text.find(stop, max(0, self._num_characters_before - len(stop) + 1))
        return at if at >= 0 else None

    def _finish(self, reason: FinishReason, now: float, stop_at: int | None = None) -> None:
        self._end(reason, now)
        self.emit(Finished(reason, self._detokenizer.text, stop_at))

    def _end(self, outcome: FinishReason | GenerationFailed, now: float) -> None:
        if len(self.segments) > 1:
            self._forget_idle_segment()
        self.status = Status.FINISHED
        self.outcome = outcome
        self.timeline.finished = now

    def emit(self, event: Token | Finished) -> None:
        self.events.append(event)
        self._tell_reader()

    def _tell_reader(self) -> None:
        if self.on_news is not None:
            self.on_news()

    async def _until(self, is_due: Callable[[], bool]) -> None:
        """Wait for news after which it is due."""
        if is_due():
            return
        came = asyncio.get_running_loop().create_future()

        def check() -> None:
            if is_due() and not came.done():
                came.set_result(None)

        self.on_news = check
        await came
