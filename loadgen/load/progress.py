"""Progress of a run, for the live view. Cheap, since it is computed on the measuring event loop."""

from collections import Counter
from collections.abc import Sequence
from time import monotonic

import msgspec

from loadgen.client.records import Outcome, Record
from loadgen.load.pacer import LagMeter

RECENT = 200  # latest ended requests, used for recent latencies


class Snapshot(msgspec.Struct, frozen=True):
    """State of a run at one time. Times in seconds, latencies in ms; None: unknown."""

    title: str
    elapsed_s: float
    planned_s: float | None
    planned_requests: int | None
    started: int
    open: int
    ended: dict[str, int]
    tokens: int
    tokens_per_s: float
    ttft_p50_ms: float | None
    ttft_p95_ms: float | None
    tpot_p50_ms: float | None
    lag_ms: float
    answered_by: str
    note: str = ""


class Progress:
    """Follows the records of a run; skips those that had ended by the last snapshot."""

    def __init__(self, title: str, records: Sequence[Record], meter: LagMeter):
        self._title = title
        self._records = records
        self._meter = meter
        self._began = monotonic()
        self._settled = 0  # records before this index have ended and are counted
        self._ended: Counter[str] = Counter()
        self._settled_tokens = 0
        self._last = (self._began, 0)

    def snapshot(self, planned_s: float | None, planned_requests: int | None, note: str = "") -> Snapshot:
        self._settle()
        fresh = self._records[self._settled :]
        tokens = self._settled_tokens + sum(record.num_tokens for record in fresh)
        ended = self._ended + Counter(r.outcome.value for r in fresh if r.ended is not None)
        recent = [r for r in self._records[-RECENT:] if r.token_times]
        return Snapshot(
            title=self._title,
            elapsed_s=monotonic() - self._began,
            planned_s=planned_s,
            planned_requests=planned_requests,
            started=len(self._records),
            open=len(self._records) - sum(ended.values()),
            ended=dict(ended),
            tokens=tokens,
            tokens_per_s=self._speed(tokens),
            ttft_p50_ms=_middle([r.ttft_ms for r in recent], 0.5),
            ttft_p95_ms=_middle([r.ttft_ms for r in recent], 0.95),
            tpot_p50_ms=_middle([r.tpot_ms for r in recent], 0.5),
            lag_ms=max(self._meter.lags[-100:], default=0.0) * 1e3,
            answered_by=_answered_by(recent),
            note=note,
        )

    def _settle(self) -> None:
        while (
            self._settled < len(self._records) and self._records[self._settled].outcome is not Outcome.PENDING
        ):
            record = self._records[self._settled]
            self._ended[record.outcome.value] += 1
            self._settled_tokens += record.num_tokens
            self._settled += 1

    def _speed(self, tokens: int) -> float:
        now = monotonic()
        (before, tokens_before), self._last = self._last, (now, tokens)
        return max(0, tokens - tokens_before) / max(now - before, 1e-3)


def _middle(values: list[float | None], share: float) -> float | None:
    known = sorted(value for value in values if value is not None)
    return known[min(len(known) - 1, int(len(known) * share))] if known else None


def _answered_by(recent: list[Record]) -> str:
    named = [f"{record.model} {record.version[:8]}".strip() for record in recent if record.version]
    return named[-1] if named else ""
