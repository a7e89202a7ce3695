"""The input of a run, and its result: every figure is computed from a `Run` alone."""

from array import array
from collections.abc import Iterator
from typing import Any

import msgspec

from loadgen.client.dialects import Dialect
from loadgen.client.ops import Decision
from loadgen.client.records import Record
from loadgen.client.scrape import Scrape
from loadgen.client.server_info import ServerInfo
from loadgen.client.template import ChatTemplate


class RequestOptions(msgspec.Struct, frozen=True, kw_only=True):
    """Parameters common to all requests."""

    dialect: Dialect
    model: str
    temperature: float = 0.0
    ignore_eos: bool = False
    exit_threshold: float | None = None
    exact: bool = False
    template: ChatTemplate | None = None  # None: speakers' names before messages
    extra: dict[str, Any] = {}


class Pace(msgspec.Struct, frozen=True, kw_only=True):
    """The pace: `concurrency` at a time, or at `times` (seconds since the start), or `times` capped by it."""

    concurrency: int | None = None
    times: Iterator[float] | None = None
    num_requests: int | None = None
    duration_s: float = float("inf")
    drain_s: float = float("inf")  # time for open streams to end after the last start

    @property
    def is_open_loop(self) -> bool:
        return self.times is not None


class Run(msgspec.Struct, kw_only=True):
    """One finished run. Times are `time.monotonic()` seconds except `began_at_s`, a time of the epoch."""

    label: str
    url: str
    server_info: ServerInfo
    is_open_loop: bool
    concurrency: int | None
    began: float
    began_at_s: float
    ended: float = 0.0
    last_start: float = 0.0
    records: list[Record] = []
    lags: "array[float]" = msgspec.field(default_factory=lambda: array("d"))
    cpu_s: float = 0.0
    scrapes: list[Scrape] = []
    decisions: list[Decision] = []
    state: dict[str, Any] = {}  # /ops/state at the end
    settings: dict[str, Any] = {}
    notes: list[str] = []

    @property
    def duration_s(self) -> float:
        return self.ended - self.began

    def since_start(self, at: float) -> float:
        return at - self.began

    def from_epoch(self, at_s: float) -> float:
        """A time of the epoch as seconds since the start of the run."""
        return at_s - self.began_at_s
