"""Windows summed up over all shards, by candidate and by steps of time. Pure: `Store` writes them to Redis.

Of a thousand shards the windows of a minute are many; their sums stay small, and can be kept for longer. A
step is written again with each flush while windows are added to it, so that a killed router loses no more of
it than of its windows. A hash in Redis holds some time of all routers.
"""

import contextlib
from collections.abc import Iterable, Mapping

import msgspec

from telemetry.window import Record, Window

MAX_WAITING = 1440  # steps in memory while Redis is away
_OPEN_S = 180  # a step gets no more windows so long after it began

_encode = msgspec.msgpack.Encoder().encode


class CandidateSum(msgspec.Struct, frozen=True):
    """A window over all shards of one router that served a candidate at a depth."""

    candidate: str
    depth: int
    window: Window


class Resolution(msgspec.Struct, frozen=True):
    """Steps of `step_s` seconds, kept for `kept_s`. A hash holds `hash_s` seconds of them."""

    step_s: int
    hash_s: int
    kept_s: int

    def hashes(self, since: float, until: float) -> range:
        """The hashes that [since, until) touches, by number."""
        return range(int(since // self.hash_s), int(-(-until // self.hash_s)))


class StepEntry(msgspec.Struct, frozen=True):
    """A step to be written. `start` is Unix time in seconds."""

    start: int
    num_added: int  # windows
    data: bytes


class _Step:
    def __init__(self) -> None:
        self.sums: dict[tuple[str, int], Window] = {}
        self.num_added = 0
        self.num_written = 0


class Rollup:
    """This router's steps of one length: the latest, and those that Redis lacks."""

    def __init__(self, resolution: Resolution):
        self.resolution = resolution
        self._steps: dict[int, _Step] = {}  # by start

    def add(self, sums: Iterable[CandidateSum | Record]) -> None:
        step_s = self.resolution.step_s
        for one in sums:
            start = int(one.window.start // step_s) * step_s
            step = self._steps.setdefault(start, _Step())
            step.sums.setdefault((one.candidate, one.depth), Window()).merge(one.window)
            step.num_added += 1
        while len(self._steps) > MAX_WAITING:
            del self._steps[min(self._steps)]

    def unwritten(self) -> list[StepEntry]:
        return [
            StepEntry(start, step.num_added, _encode(_sums(step)))
            for start, step in self._steps.items()
            if step.num_added > step.num_written
        ]

    def written(self, entries: Iterable[StepEntry]) -> None:
        """Note that Redis has these; steps that are over are forgotten."""
        for entry in entries:
            if entry.start in self._steps:
                self._steps[entry.start].num_written = entry.num_added
        newest = max(self._steps, default=0)
        for start, step in list(self._steps.items()):
            if step.num_written == step.num_added and start < newest - _OPEN_S:
                del self._steps[start]

    def between(self, since: float, until: float) -> list[CandidateSum]:
        """Those in memory that began in [since, until), Unix time."""
        return [one for start, step in self._steps.items() if since <= start < until for one in _sums(step)]


def summed(records: Iterable[Record], step_s: int) -> list[CandidateSum]:
    """Records summed up over shards, for rollups whose steps are multiples of `step_s`."""
    first = Rollup(Resolution(step_s, step_s, step_s))
    first.add(records)
    return first.between(float("-inf"), float("inf"))


def field_of(start: int, router: str) -> str:
    """The step's field in its hash."""
    return f"{start}:{router}"


def decode_between(hashes: Iterable[Mapping[bytes, bytes]], since: float, until: float) -> list[CandidateSum]:
    """Sums of steps that began in [since, until), without those in another version's format."""
    found: list[CandidateSum] = []
    for fields in hashes:
        for name, data in fields.items():
            start = name.partition(b":")[0]
            if start.isdigit() and since <= int(start) < until:
                with contextlib.suppress(msgspec.MsgspecError):
                    found += msgspec.msgpack.decode(data, type=list[CandidateSum])
    return found


def _sums(step: _Step) -> list[CandidateSum]:
    return [CandidateSum(candidate, depth, window) for (candidate, depth), window in step.sums.items()]
