"""The tables: shards, candidates, decisions, requests. Pure."""

import enum
from collections.abc import Sequence

from telemetry.history import Row
from telemetry.overview import Overview, ShardRow
from telemetry.snapshot import RequestView
from telemetry.terminal.top.grid import Column, GridRow
from telemetry.terminal.top.summary import router_name
from telemetry.terminal.wording import choice, clock, count, duration, milliseconds, percent, rounded

_OF_STATE = {"serving": "", "draining": "yellow", "swapping": "yellow", "loading": "yellow", "dead": "red"}
_OF_OUTCOME = {"committed": "", "refused": "yellow", "rolled_back": "yellow", "failed": "red", None: "bold"}

Table = tuple[Sequence[Column], list[GridRow]]


class View(enum.StrEnum):
    """What the table shows."""

    SHARDS = "shards"
    CANDIDATES = "candidates"
    DECISIONS = "decisions"
    REQUESTS = "requests"


def table_of(view: View, overview: Overview) -> Table:
    match view:
        case View.SHARDS:
            return SHARD_COLUMNS, _shards(overview)
        case View.CANDIDATES:
            return CANDIDATE_COLUMNS, _candidates(overview)
        case View.DECISIONS:
            return DECISION_COLUMNS, decisions(overview)
        case View.REQUESTS:
            return REQUEST_COLUMNS, _requests(overview)


SHARD_COLUMNS = (
    Column("SHARD", is_number=True),
    Column("MODEL", most=26),
    Column("DEPTH", is_number=True),
    Column("MODE", rank=3, most=12),
    Column("STATE", most=18),
    Column("BATCH", is_number=True),
    Column("KV", is_number=True, rank=1),
    Column("TOK/S", is_number=True),
    Column("WATT", is_number=True, rank=2),
    Column("HEARD", is_number=True),
    Column("VERSION", rank=4),
)
CANDIDATE_COLUMNS = (
    Column("CANDIDATE"),
    Column("DEPTH", is_number=True),
    Column("SHARDS", is_number=True),
    Column("REQUESTS", is_number=True, rank=2),
    Column("TOK/S", is_number=True),
    Column("AGREEMENT"),
    Column("BREACH", is_number=True, rank=3),
    Column("ITL P95", is_number=True),
    Column("J/TOK", is_number=True, rank=4),
    Column("MEASURED"),
)
DECISION_COLUMNS = (
    Column("TAKEN", most=12),
    Column("BY", most=16),
    Column("KIND", most=10),
    Column("CHOSEN", most=22),
    Column("OUTCOME", most=11),
    Column("WHY"),
)
REQUEST_COLUMNS = (
    Column("ID", is_number=True),
    Column("STATUS", most=9),
    Column("SHARD", is_number=True),
    Column("MODEL", most=26),
    Column("PROMPT", is_number=True),
    Column("TOKENS", is_number=True),
    Column("OF", is_number=True, rank=1),
    Column("EXIT", is_number=True, rank=2),
    Column("AGE", is_number=True),
    Column("OUTCOME"),
)


def decisions(overview: Overview) -> list[GridRow]:
    """Decisions, the latest first."""
    return [
        GridRow(
            ("decision", decision.id),
            (
                clock(decision.at),
                decision.by,
                decision.kind,
                choice(decision.chosen),
                decision.outcome or "under way",
                decision.error or decision.why,
            ),
            _OF_OUTCOME.get(decision.outcome, ""),
        )
        for decision in overview.decisions
    ]


def shard_name(router: str, id: int, overview: Overview) -> str:
    return str(id) if len(overview.routers) < 2 else f"{router_name(router)}:{id}"


def latest(history: Sequence[Row], candidate: str, depth: int) -> Row | None:
    """The row of a choice that was measured last, of whatever prompts."""
    rows = [row for row in history if (row.candidate, row.depth) == (candidate, depth)]
    return max(rows, key=lambda row: row.measured_at, default=None)


def choices(overview: Overview) -> list[tuple[str, int, int]]:
    """Candidates with depth and number of layers (0: unknown): those offered, and those measured."""
    listed = [
        (one.candidate, one.depth, one.num_layers) for r in overview.routers for one in r.snapshot.candidates
    ]
    known = {found[:2]: found for found in listed}
    for row in overview.history:
        known.setdefault((row.candidate, row.depth), (row.candidate, row.depth, 0))
    return sorted(known.values())


def _shards(overview: Overview) -> list[GridRow]:
    age_ms = {row.snapshot.router: 1000 * row.age_s for row in overview.routers}
    alive = {row.snapshot.router for row in overview.routers if row.is_alive}
    return [
        _shard(row, age_ms.get(row.router, 0.0), row.router in alive, overview) for row in overview.shards
    ]


def _shard(row: ShardRow, age_ms: float, is_alive: bool, overview: Overview) -> GridRow:
    shard = row.shard
    state = f"{shard.state} ({shard.swap_phase})" if shard.swap_phase else shard.state
    heard = "never" if shard.heartbeat_age_ms is None else duration((shard.heartbeat_age_ms + age_ms) / 1000)
    cells = (
        shard_name(row.router, shard.id, overview),
        shard.model,
        f"{shard.depth}/{shard.num_layers}",
        shard.exit_mode,
        state if is_alive else "router down",
        str(shard.running),
        f"{shard.num_blocks - shard.num_free_blocks}/{shard.num_blocks}",
        rounded(row.figures.tokens_per_s) if overview.has_figures else "-",
        rounded(row.figures.watts),
        heard,
        shard.version,
    )
    style = _OF_STATE.get(shard.state, "") if is_alive else "dim"
    return GridRow(("shard", row.router, shard.id), cells, style)


def _candidates(overview: Overview) -> list[GridRow]:
    serving: dict[tuple[str, int], int] = {}
    for shard in overview.current_shards:
        key = shard.shard.model, shard.shard.depth
        serving[key] = serving.get(key, 0) + 1
    rows: list[GridRow] = []
    for candidate, depth, num_layers in choices(overview):
        row, num_shards = latest(overview.history, candidate, depth), serving.get((candidate, depth), 0)
        cells = (
            candidate,
            f"{depth}/{num_layers or '?'}",
            str(num_shards or "-"),
            *_measured(row, overview.at),
        )
        rows.append(GridRow(("candidate", candidate, depth), cells, "bold" if num_shards else ""))
    return rows


def _measured(row: Row | None, now: float) -> tuple[str, ...]:
    if row is None:
        return "-", "-", "-", "-", "-", "-", "never"
    share = row.agreement
    interval = (
        "-" if share is None else f"{percent(share.value)} [{100 * share.low:.1f}, {100 * share.high:.1f}]"
    )
    return (
        count(row.num_requests),
        rounded(row.throughput),
        interval,
        percent(row.breach_rate),
        milliseconds(row.itl_p95_ms),
        rounded(row.joules_per_token),
        f"{duration(max(0.0, now - row.measured_at))} ago",
    )


def _requests(overview: Overview) -> list[GridRow]:
    return [
        _request(router.snapshot.router, request, overview)
        for router in overview.routers
        for request in router.snapshot.requests
    ]


def _request(router: str, request: RequestView, overview: Overview) -> GridRow:
    cells = (
        shard_name(router, request.id, overview),
        request.status,
        "-" if request.shard is None else str(request.shard),
        request.model,
        count(request.num_prompt_tokens),
        count(request.num_generated_tokens),
        count(request.max_new_tokens),
        rounded(request.mean_exit_layer),
        duration(request.age_ms / 1000),
        request.outcome or "",
    )
    return GridRow(("request", router, request.id), cells, "" if request.outcome else "bold")
