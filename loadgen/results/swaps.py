"""Effects of swaps on streams: the versions that answered, and the gaps."""

import itertools
from collections.abc import Sequence

import msgspec
import numpy as np

from loadgen.client.records import Record
from loadgen.load.run import Run

ASKED_FOR = ("swap", "rollback", "pin")  # kinds of decisions that are swaps, also while under way
AFTERMATH_S = 1.0  # gaps that begin later after a swap are not attributed to it


class Swap(msgspec.Struct, frozen=True):
    """One swap and its effect on streams. Times in seconds since the start of the run."""

    at_s: float
    until_s: float
    to: str
    by: str
    outcome: str
    phases_ms: dict[str, float]
    num_streams: int  # streams open at that time
    longest_gap_ms: float | None  # between two tokens of one stream
    median_gap_ms: float | None  # median of each stream's longest gap
    why: str = ""
    kind: str = ""  # kind of the decision; `evaluate` is a trial on a few requests


class Version(msgspec.Struct, frozen=True):
    """Answers that report one model and version."""

    model: str
    version: str
    depth: int
    num_requests: int
    first_s: float
    last_s: float


def swaps_of(run: Run) -> list[Swap]:
    """Swaps by the server's decisions, else by changes of the versions in answers."""
    decided = [decision for decision in run.decisions if decision.phases_ms or decision.kind in ASKED_FOR]
    if not decided:
        return _seen(run)
    found = []
    for decision in decided:
        at_s = run.from_epoch(decision.at_s)
        until_s = at_s + sum(decision.phases_ms.values()) / 1e3
        gaps = longest_gaps(run.records, run.began + at_s, run.began + until_s + AFTERMATH_S)
        found.append(
            Swap(
                at_s=at_s,
                until_s=until_s,
                to=decision.chosen,
                by=decision.by,
                outcome=decision.outcome or "under way",
                phases_ms=decision.phases_ms,
                num_streams=len(gaps),
                longest_gap_ms=max(gaps, default=None),
                median_gap_ms=float(np.median(gaps)) if gaps else None,
                why=decision.error or decision.why,
                kind=decision.kind,
            )
        )
    return found


def _seen(run: Run) -> list[Swap]:
    """Changes of the version that began answers."""
    begun = sorted((r for r in run.records if r.version and r.sent is not None), key=lambda r: r.sent or 0.0)
    found = []
    for before, after in itertools.pairwise(begun):
        if after.version == before.version:
            continue
        at_s = run.since_start(after.sent or 0.0)
        gaps = longest_gaps(run.records, run.began + at_s - AFTERMATH_S, run.began + at_s + AFTERMATH_S)
        longest, median = max(gaps, default=None), float(np.median(gaps)) if gaps else None
        name = f"{after.model} ({after.version[:8]})"
        found.append(Swap(at_s, at_s, name, "", "seen in answers", {}, len(gaps), longest, median))
    return found


def longest_gaps(records: Sequence[Record], start: float, end: float) -> list[float]:
    """For each stream open in [start, end], its longest pause between tokens there, in ms.

    A pause counts if it overlaps the period.
    """
    gaps = []
    for record in records:
        times = np.asarray(record.token_times)
        if times.size < 2 or times[0] > end or times[-1] < start:
            continue
        overlaps = (times[:-1] < end) & (times[1:] > start)
        if overlaps.any():
            gaps.append(float(np.diff(times)[overlaps].max()) * 1e3)
    return gaps


def versions_of(run: Run) -> list[Version]:
    """The versions that answered, in order of first appearance."""
    found: dict[tuple[str, str], list[float]] = {}
    depths: dict[str, int] = {}
    for record in run.records:
        at_s = run.since_start(record.sent if record.sent is not None else record.intended)
        depths |= {segment.version: segment.depth for segment in record.segments}
        for name in _named(record):
            found.setdefault(name, []).append(at_s)
    versions = [
        Version(model, version, depths.get(version, 0), len(times), min(times), max(times))
        for (model, version), times in found.items()
    ]
    return sorted(versions, key=lambda version: version.first_s)


def _named(record: Record) -> set[tuple[str, str]]:
    """(model, version) pairs by the last event, else (cut short, or no details) by the headers."""
    if record.segments:
        return {(segment.model, segment.version) for segment in record.segments}
    return {(record.model, record.version)} if record.version else set()
