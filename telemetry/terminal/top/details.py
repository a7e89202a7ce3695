"""One shard, candidate, decision or request with all that is known of it, as lines. Pure."""

import itertools
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich.text import Text

from telemetry.audit import Decision
from telemetry.history import Row
from telemetry.overview import Overview, ShardRow
from telemetry.snapshot import CacheState, Moment, RequestView
from telemetry.terminal.top.grid import Key
from telemetry.terminal.top.summary import own_thresholds
from telemetry.terminal.wording import choice, clean, clock, count, duration, milliseconds, percent, rounded

_NAME_WIDTH = 14

Pairs = Iterable[tuple[str, str]]


def title_of(key: Key) -> str:
    match key:
        case ("candidate", name, depth):
            return clean(f"candidate {name} at {depth} layers")
        case (kind, _, id):
            return clean(f"{kind} {id}")
        case _:
            return clean(" ".join(map(str, key)))


def lines_of(key: Key, overview: Overview, width: int) -> list[Text]:
    """The lines of what `key` names; one line if it is no longer known."""
    match key:
        case ("shard", router, id):
            shards = (row for row in overview.shards if (row.router, row.shard.id) == (router, id))
            found: Any = next(shards, None)
            pairs = _shard(found) if found is not None else None
        case ("candidate", str(name), int(depth)):
            pairs = _candidate(name, depth, overview)
        case ("decision", id):
            found = next((decision for decision in overview.decisions if decision.id == id), None)
            pairs = _decision(found) if found is not None else None
        case ("request", router, id):
            found = _find_request(str(router), id, overview)
            pairs = _request(found, str(router)) if found is not None else None
        case _:
            pairs = None
    if pairs is None:
        return [Text("It is no longer known.")]
    return [line for name, text in pairs for line in _lines(name, text, width)]


def _find_request(router: str, id: object, overview: Overview) -> RequestView | None:
    snapshots = (row.snapshot for row in overview.routers if row.snapshot.router == router)
    return next((request for one in snapshots for request in one.requests if request.id == id), None)


def _shard(row: ShardRow) -> Pairs:
    shard = row.shard
    yield "router", row.router
    yield "state", f"{shard.state} ({shard.swap_phase})" if shard.swap_phase else shard.state
    yield "model", f"{shard.model}, version {shard.version}"
    yield "depth", f"{shard.depth} of {shard.num_layers} layers, mode {shard.exit_mode}"
    yield "exits", own_thresholds([shard])
    yield "types", f"{shard.dtype or '-'}, kernels {shard.kernels or '-'}"
    yield "loaded", f"{shard.num_models} models"
    yield "batch", f"{shard.running} requests"
    yield "KV blocks", f"{shard.num_blocks - shard.num_free_blocks} of {shard.num_blocks} in use"
    yield "prefix cache", _cache(shard.cache)
    yield "speed", f"{rounded(row.figures.tokens_per_s)} tokens/s"
    yield "power", "not metered" if row.figures.watts is None else f"{rounded(row.figures.watts)} W"
    heard = shard.heartbeat_age_ms
    yield "heard", "never" if heard is None else f"{duration(heard / 1000)} before this state was written"
    yield "deaths", f"{shard.num_deaths}{', the last: ' + shard.reason if shard.reason else ''}"
    for warning in shard.warnings:
        yield "warning", warning


def _cache(cache: CacheState) -> str:
    if not cache.queried_tokens:
        return f"{count(cache.known_blocks)} blocks, nothing looked for yet"
    share = percent(cache.hit_share)
    parts = [f"{count(cache.known_blocks)} blocks, {share} of {count(cache.queried_tokens)} tokens found"]
    if cache.mean_reuse_gap_ms is not None:
        parts.append(f"after {duration(cache.mean_reuse_gap_ms / 1000)} on average")
    if cache.mean_evicted_age_ms is not None:
        age = duration(cache.mean_evicted_age_ms / 1000)
        parts.append(f"{count(cache.evicted_blocks)} evicted, {age} after their last use")
    return ", ".join(parts)


def _candidate(name: str, depth: int, overview: Overview) -> Pairs:
    shards = [row for row in overview.shards if (row.shard.model, row.shard.depth) == (name, depth)]
    yield "serving", f"on {len(shards)} shards"
    floors = {row.snapshot.floor for row in overview.routers if row.snapshot.floor is not None}
    yield "floor", ", ".join(percent(floor) for floor in sorted(floors)) or "-"
    live = next((one for one in overview.models if (one.candidate, one.depth) == (name, depth)), None)
    if live is not None:
        yield "last minute", f"{count(live.requests)} requests, {count(live.tokens)} tokens"
        yield "exits", _exits(live.tokens_by_exit)
    rows = [row for row in overview.history if (row.candidate, row.depth) == (name, depth)]
    for row in rows:
        yield "", ""
        yield from _history(row, overview.at)
    if not rows:
        yield "measured", "never"


def _history(row: Row, now: float) -> Pairs:
    """One row of the Performance History Table."""
    yield "prompts", row.prompts or "mixed"
    yield "measured", f"{duration(max(0.0, now - row.measured_at))} ago, version {row.version or '-'}"
    yield "requests", f"{count(row.num_requests)}, {count(row.num_tokens)} tokens"
    yield "throughput", f"{rounded(row.throughput)} tokens/s"
    if row.agreement is not None:
        share = row.agreement
        interval = f"{percent(share.value)} [{percent(share.low)}, {percent(share.high)}]"
        yield "agreement", f"{interval} over {share.num_sequences} answers"
    yield "breaches", f"{count(row.breaches)} ({percent(row.breach_rate)})"
    yield "exits", _exits(row.exits)
    if row.cost is not None:
        yield "cost", f"{rounded(row.cost.a_ms)} + {rounded(row.cost.b_ms)} x layers, ms per token alone"
    yield "p95", f"TTFT {milliseconds(row.ttft_p95_ms)} ms, ITL {milliseconds(row.itl_p95_ms)} ms"
    yield "energy", f"{rounded(row.joules_per_token)} J per token"
    if row.perplexity is not None:
        yield "perplexity", rounded(row.perplexity)
    yield (
        "to change",
        f"{milliseconds(row.swap_ms)} ms from others, {milliseconds(row.deepen_ms)} ms by depth",
    )


def _decision(decision: Decision) -> Pairs:
    origin = f" from {decision.origin}" if decision.origin else ""
    yield "taken", f"{clock(decision.at)} by {decision.by}{origin}"
    yield "router", decision.router or "-"
    yield "what", f"{decision.kind} {choice(decision.chosen)}"
    yield "why", decision.why
    yield "outcome", decision.outcome or "under way"
    if decision.error:
        yield "error", decision.error
    for phase, ms in decision.phases_ms.items():
        yield f"  {phase}", f"{milliseconds(ms)} ms"
    for name, value in decision.cost.items():
        yield f"  {name}", rounded(value)
    if decision.seen:
        yield "seen", _plain(decision.seen)
    for entry in decision.considered:
        yield "considered", _plain(entry)


def _request(request: RequestView, router: str) -> Pairs:
    yield "router", router
    yield "status", request.status + (f": {request.outcome}" if request.outcome else "")
    shard = "no shard" if request.shard is None else f"shard {request.shard}"
    yield "model", f"{request.model} {request.version}, {shard}"
    yield "tokens", f"{request.num_generated_tokens} of at most {request.max_new_tokens}"
    yield "prompt", f"{count(request.num_prompt_tokens)} tokens"
    yield "mean exit", f"layer {rounded(request.mean_exit_layer)}"
    yield (
        "interrupted",
        f"{request.num_preemptions} preemptions, {request.num_shard_deaths} deaths of a shard",
    )
    if request.exit_layers:
        yield "by token", _runs(request.exit_layers)
    for moment in request.timeline:
        yield f"+{milliseconds(moment.at_ms)} ms", _moment(moment)


def _moment(moment: Moment) -> str:
    """Such as `started on shard 0, chat at 20 layers, 12 tokens`."""
    parts = [] if moment.shard is None else [f"on shard {moment.shard}"]
    parts += [] if moment.model is None else [f"{moment.model} at {moment.depth} layers"]
    parts += [f"{count(moment.num_generated_tokens)} tokens"] if moment.num_generated_tokens else []
    return f"{moment.what} {', '.join(parts)}".strip()


def _runs(layers: Sequence[int]) -> str:
    """Exit layers of the latest tokens, equal ones counted: such as `20 x3, 30, 20 x2`."""
    runs = ((layer, len(list(run))) for layer, run in itertools.groupby(layers))
    return ", ".join(f"{layer or 'forced'}{f' x{num}' if num > 1 else ''}" for layer, num in runs)


def _exits(tokens: Mapping[int, int]) -> str:
    total = max(1, sum(tokens.values()))
    return ", ".join(f"{num / total:.0%} after layer {layer}" for layer, num in sorted(tokens.items())) or "-"


def _plain(value: Any) -> str:
    """Fields of any shape in one line."""
    if isinstance(value, dict):
        return ", ".join(f"{name} {_plain(part)}" for name, part in value.items())
    if isinstance(value, list):
        return "[" + ", ".join(map(_plain, value)) + "]"
    return rounded(value) if isinstance(value, float) else str(value)


def _lines(name: str, text: str, width: int) -> list[Text]:
    """A name and its text, which goes on below itself where it is too long."""
    parts = textwrap.wrap(clean(text), max(20, width - _NAME_WIDTH)) or [""]
    names = [clean(name), *[""] * (len(parts) - 1)]
    return [
        Text(f"{name:<{_NAME_WIDTH}}", style="bold").append(part, style="not bold")
        for name, part in zip(names, parts, strict=True)
    ]
