"""A deployment at a moment, for `helios top`: what routers wrote of themselves, and sums of ticks. Pure."""

from collections.abc import Iterable

import msgspec

from telemetry.audit import Decision
from telemetry.history import Row
from telemetry.snapshot import ShardView, Snapshot
from telemetry.tick import ShardWork, Tick
from telemetry.window import Window

SPAN_S = 60.0  # time that figures of models cover
RATE_S = 10.0  # time that rates cover
ALIVE_S = 5.0  # silence after which a router counts as down
HIDDEN_S = 30.0  # a router that is silent for so much longer than another is left out

TimedTick = tuple[float, Tick]  # with when it was flushed, Unix time in seconds by the router's clock


class Percentiles(msgspec.Struct, frozen=True):
    """Milliseconds within 2%; None without samples."""

    p50: float | None = None
    p95: float | None = None
    p99: float | None = None


class Figures(msgspec.Struct, frozen=True, kw_only=True):
    """Sums over the last `SPAN_S`, of one candidate at a depth or of all."""

    candidate: str = ""
    depth: int = 0
    requests: int = 0  # answered
    failures: int = 0
    tokens: int = 0
    tokens_by_exit: dict[int, int] = {}
    breaches: int = 0
    tokens_per_s: float = 0.0  # over the last `RATE_S`
    ttft_ms: Percentiles = Percentiles()
    itl_ms: Percentiles = Percentiles()
    scored_tokens: int = 0
    agreeing_tokens: int = 0
    joules_per_token: float | None = None


class ShardFigures(msgspec.Struct, frozen=True):
    """Rates of a shard over the last `RATE_S`. `watts` are those of its busy time; None: not metered."""

    tokens_per_s: float = 0.0
    watts: float | None = None


class ShardRow(msgspec.Struct, frozen=True):
    """A shard with its router."""

    router: str
    shard: ShardView
    figures: ShardFigures = ShardFigures()


class RouterRow(msgspec.Struct, frozen=True):
    """A router with its last snapshot, but for shards, and that snapshot's age."""

    age_s: float
    is_alive: bool
    snapshot: Snapshot


class Overview(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that `helios top` shows. `at` is when it was read, Unix time in seconds."""

    at: float
    deployment: str
    router: str = ""  # which tells it; "": a reader that is none
    redis: str = "ok"  # ok | lost: without Redis there are no figures, and no other routers
    span_s: float = SPAN_S
    routers: list[RouterRow] = []
    shards: list[ShardRow] = []
    total: Figures = Figures()
    models: list[Figures] = []
    history: list[Row] = []
    decisions: list[Decision] = []  # the latest first

    @property
    def has_figures(self) -> bool:
        """Sums of windows are known; without Redis their zeros say nothing."""
        return self.redis == "ok"

    @property
    def is_alive(self) -> bool:
        return any(router.is_alive for router in self.routers)

    @property
    def current(self) -> list[RouterRow]:
        """The routers whose states count: those that are alive; without such all, as of their last words."""
        return [router for router in self.routers if router.is_alive] or self.routers

    @property
    def current_shards(self) -> list[ShardRow]:
        """Their shards."""
        names = {router.snapshot.router for router in self.current}
        return [row for row in self.shards if row.router in names]

    @property
    def age_s(self) -> float | None:
        """Age of the latest snapshot; None without any."""
        return min((router.age_s for router in self.routers), default=None)


def figures_of(ticks: Iterable[TimedTick], now: float) -> list[Figures]:
    """The figures of each candidate and depth, and first those of all together."""
    total, models, fresh = Window(), dict[tuple[str, int], Window](), dict[tuple[str, int], int]()
    for at, tick in ticks:
        if at <= now - SPAN_S:
            continue
        for one in tick.models:
            key = one.candidate, one.depth
            models.setdefault(key, Window()).merge(one.window)
            if at > now - RATE_S:
                fresh[key] = fresh.get(key, 0) + one.window.tokens
    for window in models.values():
        total.merge(window)
    rows = [_figures(*key, models[key], fresh.get(key, 0)) for key in sorted(models)]
    return [_figures("", 0, total, sum(fresh.values())), *rows]


def shard_figures(ticks: Iterable[TimedTick], now: float) -> dict[int, ShardFigures]:
    """The rates of one router's shards."""
    sums: dict[int, ShardWork] = {}
    for at, tick in ticks:
        if at > now - RATE_S:
            for shard, work in tick.shards.items():
                before = sums.get(shard)
                sums[shard] = work if before is None else before + work
    return {shard: _shard_figures(work) for shard, work in sums.items()}


def visible(routers: list[RouterRow]) -> list[RouterRow]:
    """The routers to show, by name: those that were alive last, or shortly before."""
    least = min((row.age_s for row in routers), default=0.0)
    shown = [row for row in routers if row.age_s <= least + HIDDEN_S]
    return sorted(shown, key=lambda row: row.snapshot.router)


def _shard_figures(work: ShardWork) -> ShardFigures:
    watts = 1000 * work.joules / work.busy_ms if work.joules and work.busy_ms else None
    return ShardFigures(work.tokens / RATE_S, watts)


def _figures(candidate: str, depth: int, window: Window, num_fresh: int) -> Figures:
    return Figures(
        candidate=candidate,
        depth=depth,
        requests=window.requests,
        failures=window.failures,
        tokens=window.tokens,
        tokens_by_exit=dict(sorted(window.tokens_by_exit.items())),
        breaches=window.breaches,
        tokens_per_s=num_fresh / RATE_S,
        ttft_ms=Percentiles(*map(window.ttft_ms.quantile, (0.5, 0.95, 0.99))),
        itl_ms=Percentiles(*map(window.itl_ms.quantile, (0.5, 0.95, 0.99))),
        scored_tokens=window.answers.tokens,
        agreeing_tokens=window.answers.agreeing,
        joules_per_token=window.joules_per_token,
    )
