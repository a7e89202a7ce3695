"""`/ops/windows`: time series of what was served, from the store: by all routers, ended ones too."""

import asyncio
import time
from collections.abc import Callable

from aiohttp import web

from router.api.errors import Invalid
from router.api.query import LATEST, Number, Parameter, Word
from router.api.respond import json_response
from router.api.windows_structs import Percentiles, Point, Series, Windows
from router.policy.history_rows import share_of
from telemetry import keys
from telemetry.rollup import Rollup
from telemetry.series import Steps, keep_largest, series_by
from telemetry.sketch import Sketch
from telemetry.store import Store
from telemetry.window import Window

MAX_SPAN_S = 86_400
MAX_STEPS = 1440  # of one series
MAX_SERIES = 64
MAX_POINTS = 8640  # of all series; the smallest are summed up if there would be more
DEFAULT_SPAN_S = 900
_DEFAULT_STEPS = 300
_NICE_STEPS = (1, 2, 5, 10, 15, 30, 60, 120, 300, 600)  # seconds

_SINCE = Number("since", "Unix time in seconds; a quarter of an hour before `until`.", 0, LATEST)
_UNTIL = Number("until", "Unix time in seconds; now.", 0, LATEST)
_STEP = Number("step", "Seconds; such that there are 300 steps at most.", 1, 3600, is_whole=True)
_BY = Word(
    "by",
    "A series for each candidate at each depth, for each shard, or one of all.",
    ("candidate", "shard", "all"),
)
PARAMETERS: tuple[Parameter, ...] = (_SINCE, _UNTIL, _STEP, _BY)

SeriesKey = tuple[str, int]  # candidate and depth, or router and shard


class WindowsApi:
    """The handler."""

    def __init__(self, store: Store, unix_s: Callable[[], float] = time.time):
        self._store = store
        self._unix_s = unix_s

    async def windows(self, http: web.Request) -> web.Response:
        now = self._unix_s()
        until = _UNTIL.read(http, now)
        since = _SINCE.read(http, max(0.0, until - DEFAULT_SPAN_S))
        by = _BY.read(http)
        step = int(_STEP.read(http, 0)) or _step_of(until - since, by)
        _check(since, until, step)
        since = since // step * step
        rollup = self._rollup_for(step) if by != "shard" else None
        if rollup is not None:
            until = -(-until // rollup.resolution.step_s) * rollup.resolution.step_s
            series, is_complete = await self._summed(rollup, since, until, step, by, now)
        else:
            series, is_complete = await self._by_window(since, until, step, by, now)
        answer = Windows(
            since=since,
            until=until,
            step=step,
            by=by,
            kept_s=keys.WINDOWS_TTL_S if rollup is None else rollup.resolution.kept_s,
            redis="ok" if is_complete else "lost",
            series=series,
        )
        return json_response(answer)

    def _rollup_for(self, step: int) -> Rollup | None:
        """The one with the longest steps of which such steps consist."""
        fitting = (rollup for rollup in self._store.rollups if step % rollup.resolution.step_s == 0)
        return max(fitting, key=lambda rollup: rollup.resolution.step_s, default=None)

    async def _summed(
        self, rollup: Rollup, since: float, until: float, step: int, by: str, now: float
    ) -> tuple[list[Series], bool]:
        """The series, and whether they are from Redis."""
        found = await self._store.sums(rollup, since, until)
        sums = rollup.between(since, until) if found is None else found

        def make() -> list[Series]:
            if by == "all":
                return _total_series(series_by(sums, step, lambda _: "all"), step, now)
            return _all_series(series_by(sums, step, lambda one: (one.candidate, one.depth)), step, now)

        return await asyncio.to_thread(make), found is not None

    async def _by_window(
        self, since: float, until: float, step: int, by: str, now: float
    ) -> tuple[list[Series], bool]:
        """The same from the windows themselves, which are kept for an hour."""
        found = await self._store.between(since, until)
        records = self._store.waiting(since, until) if found is None else found

        def make() -> list[Series]:
            if by == "all":
                return _total_series(series_by(records, step, lambda _: "all"), step, now)
            if by == "candidate":
                return _all_series(series_by(records, step, lambda one: one.key), step, now)
            shards = series_by(records, step, lambda one: (one.router, one.shard))
            return _all_series(shards, step, now, _shard_series)

        return await asyncio.to_thread(make), found is not None


def _step_of(span_s: float, by: str) -> int:
    least = 60 if by != "shard" and span_s > keys.WINDOWS_TTL_S else 1  # what is kept for a day
    fitting = (step for step in _NICE_STEPS if step >= least and step * _DEFAULT_STEPS >= span_s)
    return next(fitting, _NICE_STEPS[-1])


def _check(since: float, until: float, step: int) -> None:
    """Raises `Invalid`."""
    if not since < until:
        raise Invalid("since", f"must be less than `until`, which is {until:.15g}. Given: {since:.15g}")
    if until - since > MAX_SPAN_S:
        least = until - MAX_SPAN_S
        raise Invalid("since", f"must be a day before `until` at most, {least:.15g}. Given: {since:.15g}")
    if until - since > step * MAX_STEPS:
        least = -(-(until - since) // MAX_STEPS)
        raise Invalid("step", f"must be {least:.0f} at least for {until - since:.0f} seconds. Given: {step}")


def _candidate_series(key: SeriesKey, points: list[Point]) -> Series:
    return Series(name=f"{key[0]}@{key[1]}", candidate=key[0], depth=key[1], points=points)


def _shard_series(key: SeriesKey, points: list[Point]) -> Series:
    return Series(name=f"{key[0]}/{key[1]}", router=key[0], shard=key[1], points=points)


def _all_series(
    found: dict[SeriesKey, Steps],
    step: int,
    now: float,
    named: Callable[[SeriesKey, list[Point]], Series] = _candidate_series,
) -> list[Series]:
    num_steps = max(map(len, found.values()), default=1)
    kept, others = keep_largest(found, max(1, min(MAX_SERIES, MAX_POINTS // num_steps)))
    series = [named(key, _points(kept[key], step, now)) for key in sorted(kept)]
    return series + ([Series(name="others", points=_points(others, step, now))] if others else [])


def _total_series(found: dict[str, Steps], step: int, now: float) -> list[Series]:
    return [Series(name=name, points=_points(steps, step, now)) for name, steps in found.items()]


def _points(steps: Steps, step: int, now: float) -> list[Point]:
    return [_point(at, min(float(step), max(1.0, now - at)), steps[at]) for at in sorted(steps)]


def _point(at: int, seconds: float, window: Window) -> Point:
    tokens = window.tokens
    layers = sum(layer * count for layer, count in window.tokens_by_exit.items())
    return Point(
        at=at,
        seconds=round(seconds, 3),
        tokens=tokens,
        tokens_per_s=tokens / seconds,
        tokens_by_exit=window.tokens_by_exit,
        mean_exit_layer=layers / tokens if tokens else None,
        requests=window.requests,
        failures=window.failures,
        ttft_ms=_percentiles(window.ttft_ms),
        itl_ms=_percentiles(window.itl_ms),
        mean_batch=window.batched / window.num_steps if window.num_steps else None,
        mean_waiting=window.waiting / window.num_steps if window.num_steps else None,
        kv_use=_kv_use(window),
        agreement=share_of(window.answers),
        scored_answers=window.answers.num_answers,
        breaches=window.breaches,
        breach_rate=window.breach_rate,
        drafted=window.drafted,
        accepted=window.accepted,
        draft_saved_s=window.draft_saved_ms / 1000,
        joules=window.joules,
        joules_per_token=window.joules_per_token,
        busy_s=window.step_ms / 1000,
    )


def _percentiles(sketch: Sketch) -> Percentiles | None:
    shares = [sketch.quantile(share) for share in (0.5, 0.95, 0.99)]
    p50, p95, p99 = (None if ms is None else round(ms, 3) for ms in shares)
    if p50 is None or p95 is None or p99 is None:
        return None
    return Percentiles(sketch.num, p50, p95, p99)


def _kv_use(window: Window) -> float | None:
    if not window.most_blocks or window.fewest_free_blocks is None:
        return None
    return max(0.0, 1 - window.fewest_free_blocks / window.most_blocks)
