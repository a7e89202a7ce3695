"""The record of one finished request, its possible outcomes and flaws.

Times are seconds of `time.monotonic()`, on Linux one clock for all processes.
"""

import enum
import itertools
from array import array

import msgspec


class Outcome(enum.StrEnum):
    """How a request ended; exactly one for every started request."""

    PENDING = "pending"
    OK = "ok"
    CANCELLED = "cancelled"  # by us, on purpose
    REFUSED = "refused"  # 429, before any work
    HTTP_ERROR = "http_error"  # another status that is not 200
    ERROR_EVENT = "error_event"  # an error event within the stream
    CONNECT = "connect"  # no connection
    RESET = "reset"  # connection reset
    CLOSED = "closed"  # connection closed before the end, between two events
    HALF_EVENT = "half_event"  # connection closed in the middle of an event
    UNFINISHED = "unfinished"  # the stream ended cleanly without a final event
    GARBAGE = "garbage"  # an unparsable event or head
    NO_ANSWER = "no_answer"  # not a byte within the time allowed
    STALL = "stall"  # silence between two events for longer than allowed
    ENDLESS = "endless"  # still sending after the time allowed, or far more tokens than asked for

    @property
    def is_failure(self) -> bool:
        """True if the server failed: not cancelled by us, not refused with 429."""
        return self not in (Outcome.OK, Outcome.CANCELLED, Outcome.REFUSED, Outcome.PENDING)


class Flaw(enum.StrEnum):
    """A defect of an answer."""

    DUPLICATED = "duplicated"  # a token or the end was repeated
    GAP = "gap"  # a token index is missing
    MIXED = "mixed"  # contains parts of another answer
    AFTER_END = "after_end"  # tokens after the last event
    TEXT_DIFFERS = "text_differs"  # the whole text is not the sum of its pieces
    COUNT_DIFFERS = "count_differs"  # the reported count is not the number of tokens sent


class Segment(msgspec.Struct, frozen=True):
    """A part of an answer written by one model at one depth."""

    model: str = ""
    version: str = ""
    depth: int = 0
    from_token: int = 0


class Record(msgspec.Struct):
    """One request. `token_times` has one entry per event that carried text or a token."""

    number: int
    group: str = ""  # prompt class
    session: int = 0
    turn: int = 0
    prompt: str = ""  # the prompt as one text
    max_tokens: int = 0
    intended: float = 0.0  # when it should have started
    begun: float = 0.0  # when the client began it
    sent: float | None = None  # when its bytes were handed to a connected socket
    ended: float | None = None
    token_times: "array[float]" = msgspec.field(default_factory=lambda: array("d"))
    exit_layers: "array[int]" = msgspec.field(default_factory=lambda: array("H"))
    confidences: "array[float]" = msgspec.field(default_factory=lambda: array("d"))
    token_ids: "array[int]" = msgspec.field(default_factory=lambda: array("q"))
    pieces: list[str] = []
    num_reads: int = 0
    outcome: Outcome = Outcome.PENDING
    status: int | None = None
    detail: str = ""
    retry_after_s: float | None = None
    finish_reason: str | None = None
    input_tokens: int | None = None
    cached_tokens: int | None = None  # of the input, that the server had computed before
    output_tokens: int | None = None
    queue_ms: float | None = None  # if the server reports it
    model: str = ""
    version: str = ""
    segments: list[Segment] = []
    flaws: list[Flaw] = []
    was_reconnected: bool = False  # a kept-alive connection had died; sent again on a new one

    @property
    def text(self) -> str:
        return "".join(self.pieces)

    @property
    def first_token(self) -> float | None:
        return self.token_times[0] if self.token_times else None

    @property
    def num_tokens(self) -> int:
        """Number of tokens: reported by the server, else events counted."""
        return self.output_tokens if self.output_tokens is not None else len(self.token_times)

    @property
    def ttft_ms(self) -> float | None:
        """Time to the first token, from the intended start."""
        return (self.token_times[0] - self.intended) * 1e3 if self.token_times else None

    @property
    def e2e_ms(self) -> float | None:
        return None if self.ended is None else (self.ended - self.intended) * 1e3

    @property
    def tpot_ms(self) -> float | None:
        """Mean time per token after the first."""
        if self.num_tokens < 2 or len(self.token_times) < 2:
            return None
        return (self.token_times[-1] - self.token_times[0]) * 1e3 / (self.num_tokens - 1)

    @property
    def longest_gap_ms(self) -> float | None:
        times = self.token_times
        if len(times) < 2:
            return None
        return max(later - earlier for earlier, later in itertools.pairwise(times)) * 1e3

    @property
    def start_delay_ms(self) -> float:
        """The client's own delay behind the intended start."""
        return (self.begun - self.intended) * 1e3

    def add_token(self, at: float, text: str) -> None:
        self.token_times.append(at)
        self.pieces.append(text)

    def add_flaw(self, flaw: Flaw) -> None:
        if flaw not in self.flaws:
            self.flaws.append(flaw)
