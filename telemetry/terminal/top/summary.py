"""The lines above the table: traffic, latency, quality, exits, the loop. Pure."""

import textwrap
from collections.abc import Iterable, Sequence

from rich.text import Text

from telemetry.overview import Figures, Overview, Percentiles, RouterRow
from telemetry.snapshot import ShardView, ShareView
from telemetry.terminal.top.grid import fit
from telemetry.terminal.wording import clean, count, milliseconds, percent, rounded

_NAME_WIDTH = 9
_BAR = "█"
_MAX_LOOPS = 4
_WIDE = 110  # cells
_MAX_WRAPPED = 2  # lines
_MAX_MODEL_WIDTH = 28
_UNKNOWN = "not known without Redis"


def summary(overview: Overview, width: int) -> list[Text]:
    """One line for each matter, some more for several routers, each at most `width` cells long."""
    lines = [
        ("serving", _serving(overview)),
        *_changes(overview),
        ("answers", _answers(overview, width)),
        ("latency", _latency(overview.total)),
        ("quality", _quality(overview)),
        ("exits", _thresholds(overview) + _breaches(overview.current)),
    ]
    loops = [line for name, text in _loops(overview.current) for line in _wrapped(name, text, width)]
    return [*(_line(name, text, width) for name, text in lines), *loops]


def histogram(overview: Overview, width: int, max_lines: int) -> list[Text]:
    """Tokens by exit layer, a line for each candidate at a depth; what serves first, then by tokens."""
    serving = {(row.shard.model, row.shard.depth) for row in overview.current_shards}

    def rank(model: Figures) -> tuple[bool, int]:
        return (model.candidate, model.depth) not in serving, -model.tokens

    models = sorted(overview.models, key=rank)
    models = [model for model in models if model.tokens][:max_lines]
    if not models:
        return [_line("exits", "no tokens in the last minute" if overview.has_figures else _UNKNOWN, width)]
    names = [clean(f"{model.candidate}@{model.depth}") for model in models]
    name_width = min(_MAX_MODEL_WIDTH, max(_NAME_WIDTH, *map(len, names)))
    room = width - name_width - 1
    return [
        _line(name, _bars(model, room), width, name_width) for name, model in zip(names, models, strict=True)
    ]


def router_name(router: str) -> str:
    """The part of a router's name that differs between routers of one machine."""
    return clean(router.rsplit("-", 1)[-1])


def own_thresholds(shards: Sequence[ShardView]) -> str:
    """Such as `own thresholds 15: 0.648, 20: never`, by exit layer; or that models have different ones."""
    if not any(shard.exit_thresholds for shard in shards):
        return "no thresholds in use"
    found = {tuple(sorted(shard.exit_thresholds.items())) for shard in shards if shard.exit_thresholds}
    if len(found) > 1:
        return "each exit's own threshold, which differ by model"
    limits = (f"{layer}: {limit:.3g}" if limit < 1 else f"{layer}: never" for layer, limit in found.pop())
    return f"own thresholds {', '.join(limits)}"


def _serving(overview: Overview) -> str:
    snapshots = [router.snapshot for router in overview.current]
    waiting, tokens = sum(one.waiting for one in snapshots), sum(one.queued_tokens for one in snapshots)
    queued = f" ({count(tokens)} tokens)" if waiting else ""
    parts = [f"{count(sum(one.running for one in snapshots))} running", f"{count(waiting)} waiting{queued}"]
    parts.append(f"{_rate(overview.total.tokens_per_s) if overview.has_figures else '-'} tokens/s")
    watts = [row.figures.watts for row in overview.current_shards if row.figures.watts is not None]
    return ", ".join([*parts, *([f"{_rate(sum(watts))} W"] if watts else [])])


def _changes(overview: Overview) -> list[tuple[str, str]]:
    """A line while models change: the phase on each shard, and how many requests that holds."""
    phases: dict[str, list[str]] = {}
    for row in overview.current_shards:
        if row.shard.swap_phase:
            phases.setdefault(row.shard.swap_phase, []).append(str(row.shard.id))
    held = sum(router.snapshot.held for router in overview.current)
    if not phases and not held:
        return []
    shards = (
        f"{phase} on shard {', '.join(ids[:4])}{' ...' if ids[4:] else ''}" for phase, ids in phases.items()
    )
    return [("change", f"{count(held)} requests held; {'; '.join(shards)}")]


def _answers(overview: Overview, width: int) -> str:
    refusals: dict[str, int] = {}
    for router in overview.current:
        for kind, number in router.snapshot.refusals.items():
            refusals[kind] = refusals.get(kind, 0) + number
    most = sorted(refusals.items(), key=lambda item: -item[1])
    refused = ", ".join(f"{count(number)} {kind}" for kind, number in most) or "none"
    total = overview.total
    answers = f"{count(total.requests)} in {overview.span_s:.0f} s, {count(total.failures)} failed"
    if not overview.has_figures:
        return f"{_UNKNOWN}; refused: {refused}"
    if width < _WIDE:
        return f"{answers}; refused: {refused}"
    return f"{answers}, {count(total.tokens)} tokens; refused since the start: {refused}"


def _latency(total: Figures) -> str:
    return f"TTFT {_times(total.ttft_ms)}, ITL {_times(total.itl_ms)} ms (p50/p95/p99)"


def _rate(number: float) -> str:
    return count(number) if number >= 1000 else rounded(number)


def _times(times: Percentiles) -> str:
    return "/".join(map(milliseconds, (times.p50, times.p95, times.p99)))


def _quality(overview: Overview) -> str:
    """The lowest agreement of the routers."""
    snapshots = [router.snapshot for router in overview.current]
    shares = [one.agreement.overall for one in snapshots if one.agreement.overall is not None]
    floor = next((one.floor for one in snapshots if one.floor is not None), None)
    text = "agreement not measured" if not shares else _agreement(min(shares, key=lambda share: share.low))
    text += "" if floor is None else f", floor {percent(floor)}"
    if len(shares) > 1:
        text += f" (lowest of {len(shares)} routers)"
    return text


def _breaches(routers: Sequence[RouterRow]) -> str:
    """The counter of tokens under threshold that is nearest to its limit."""
    breaches = [breach for router in routers for breach in router.snapshot.reassessment.breaches]
    if not breaches:
        return ""
    most = max(breaches, key=lambda breach: breach.breaches / max(1, breach.tokens))
    return f"; breaches {most.breaches} of {most.tokens} (limit {most.limit} of {most.window})"


def _agreement(share: ShareView) -> str:
    return f"agreement {percent(share.agreement)} [{percent(share.low)}, {percent(share.high)}]"


def _thresholds(overview: Overview) -> str:
    """The thresholds in force and who set them."""
    found: dict[str, list[str]] = {}
    for router in overview.current:
        name, setting = router.snapshot.router, router.snapshot.threshold
        shards = [row.shard for row in overview.shards if row.router == name]
        value = own_thresholds(shards) if setting.value is None else f"threshold {setting.value}"
        text = f"{value}, set by {setting.by}" if setting.by else value
        found.setdefault(text, []).append(router_name(name))
    if len(found) < 2:
        return next(iter(found), "-")
    return "; ".join(f"{text} ({', '.join(names)})" for text, names in found.items())


def _loops(routers: Sequence[RouterRow]) -> Iterable[tuple[str, str]]:
    for router in routers[:_MAX_LOOPS]:
        name = "loop" if len(routers) == 1 else f"loop {router_name(router.snapshot.router)}"
        yield name, _loop(router)


def _loop(router: RouterRow) -> str:
    loop, pinned = router.snapshot.reassessment, router.snapshot.pinned
    parts = [loop.state + (f" at {loop.serving}" if loop.serving else "")]
    if pinned:
        parts.append(f"pinned to {pinned}")
    if loop.trying:
        parts.append(f"trying {loop.trying}")
    if loop.next_in is not None:
        parts.append(f"next in {loop.next_in} answers" if loop.next_in else "a decision is due")
    return ", ".join(parts) + (f": {loop.why}" if loop.why else "")


def _bars(model: Figures, room: int) -> str:
    """Such as `10 ████ 40%  20 ██ 20%`: the layer, a bar, the share of tokens."""
    shares = [(layer, num / model.tokens) for layer, num in model.tokens_by_exit.items()]
    room -= len(shares) * len("100 100%   ")
    bars: list[str] = []
    for layer, share in shares:
        name = "forced" if layer == 0 else str(layer)  # by a grammar: no layer was run
        bars.append(f"{name} {_BAR * max(1, round(max(0, room) * share))} {100 * share:.0f}%")
    return "  ".join(bars)


def _wrapped(name: str, text: str, width: int) -> list[Text]:
    """A line, continued on further ones where it is too long."""
    parts = textwrap.wrap(
        clean(text), max(20, width - _NAME_WIDTH - 1), max_lines=_MAX_WRAPPED, placeholder=" …"
    )
    return [_line("" if index else name, part, width) for index, part in enumerate(parts)]


def _line(name: str, text: str, width: int, name_width: int = _NAME_WIDTH) -> Text:
    line = Text(fit(name, name_width) + " ", style="bold", end="")
    return line.append(fit(text, max(1, width - name_width - 1)).rstrip(), style="not bold")
