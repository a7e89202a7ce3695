"""One generation as the router sees it, from arrival to its last event, with its own output queue.

Knows nothing of HTTP, sockets or the clock: times are given to it, in seconds of the event loop's clock.
"""

import asyncio
import enum
from collections.abc import AsyncIterator

import msgspec

from router.tokenizer import Detokenizer
from shard.messages import FinishReason, Sampling, TokenOutput


class Status(enum.Enum):
    WAITING = "waiting"  # in the queue, holds nothing on a shard
    RUNNING = "running"  # a shard holds state for it
    FINISHED = "finished"


class GenerationFailed(Exception):
    """A generation that ended without an answer. `kind` is TGI's error_type; `status` the HTTP status."""

    def __init__(self, message: str, kind: str = "generation", status: int = 424, retry_after_s: int | None = None):
        super().__init__(message)
        self.kind = kind
        self.status = status
        self.retry_after_s = retry_after_s


class Spec(msgspec.Struct, frozen=True, kw_only=True):
    """What a client asked for, validated, with every default filled in."""

    prompt_token_ids: list[int]
    max_new_tokens: int
    sampling: Sampling = Sampling()
    stop: tuple[str, ...] = ()
    ignore_eos: bool = False
    priority: int = 0  # higher goes first
    deadline_s: float | None = None  # loop time by which it must have started
    exit_threshold: float | None = None
    exact: bool = False
    label: str = ""  # the client's own request id, for logs and /ops/requests


class Token(msgspec.Struct, frozen=True):
    """One generated token as a client sees it. `text` is empty while a character is incomplete."""

    id: int
    text: str
    logprob: float
    special: bool
    exit_layer: int
    confidence: float | None
    top: list[tuple[int, str, float]] = []  # (id, text, logprob), best first


class Finished(msgspec.Struct, frozen=True):
    """The end of a generation. `text` is all of the answer, stop sequence included; `stop` the one that hit."""

    reason: FinishReason
    text: str
    stop: str | None = None


class Timeline(msgspec.Struct):
    """Loop times in seconds; None: not yet."""

    arrived: float
    started: float | None = None  # first put into a step
    first_token: float | None = None
    finished: float | None = None


class Request:
    """A generation in flight. The scheduler moves it, the engine feeds it, the API reads `events()`."""

    def __init__(self, id: int, spec: Spec, detokenizer: Detokenizer, arrived: float):
        self.id = id
        self.spec = spec
        self.timeline = Timeline(arrived)
        self.status = Status.WAITING
        self.shard: int | None = None
        self.attempt = 0
        self.num_preemptions = 0
        self.num_shard_deaths = 0
        self.num_computed_tokens = 0
        self.outputs: list[TokenOutput] = []
        self.prompt_scores: list[TokenOutput] = []
        self.model = ""
        self.version = ""
        self._detokenizer = detokenizer
        self._events: asyncio.Queue[Token | Finished | GenerationFailed] = asyncio.Queue()

    @property
    def num_prompt_tokens(self) -> int:
        return len(self.spec.prompt_token_ids)

    @property
    def token_ids(self) -> list[int]:
        """Prompt and answer so far: what a replay starts from."""
        return self.spec.prompt_token_ids + [output.id for output in self.outputs]

    @property
    def num_tokens(self) -> int:
        return self.num_prompt_tokens + len(self.outputs)

    @property
    def mean_exit_layer(self) -> float | None:
        if not self.outputs:
            return None
        return sum(output.exit_layer for output in self.outputs) / len(self.outputs)

    def put(self, outputs: list[TokenOutput], finish: FinishReason | None, now: float) -> bool:
        """Take tokens from a shard; True when the generation is over.

        A stop string may end it in the middle of `outputs`: what comes after is dropped.
        """
        for output in outputs:
            if self.timeline.first_token is None:
                self.timeline.first_token = now
            self.outputs.append(output)
            piece = self._detokenizer.push(output)
            self._events.put_nowait(piece)
            stop = self._detokenizer.find_stop(self.spec.stop)
            if stop is not None:
                self._finish(FinishReason.STOP, now, stop)
                return True
        if finish is not None:
            self._finish(finish, now)
        return finish is not None

    def fail(self, error: GenerationFailed, now: float) -> None:
        """End it with an error; the reader of `events()` gets it raised."""
        self.status = Status.FINISHED
        self.timeline.finished = now
        self._events.put_nowait(error)

    async def events(self) -> AsyncIterator[Token | Finished]:
        """Tokens as they come, then one `Finished`. Raises `GenerationFailed`."""
        while True:
            event = await self._events.get()
            if isinstance(event, GenerationFailed):
                raise event
            yield event
            if isinstance(event, Finished):
                return

    def _finish(self, reason: FinishReason, now: float, stop: str | None = None) -> None:
        self.status = Status.FINISHED
        self.timeline.finished = now
        self._events.put_nowait(Finished(reason, self._detokenizer.text, stop))
