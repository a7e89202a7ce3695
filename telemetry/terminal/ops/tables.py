"""What the server says, as tables for people. Text from outside is never markup, and one line each."""

from collections.abc import Iterable
from typing import Any

from rich import box
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from telemetry.terminal.wording import choice, clean, clock, count, duration, milliseconds, percent, rounded

_PIPE_WIDTH = 160  # where the output is no terminal

Body = dict[str, Any]


def console() -> Console:
    out = Console(highlight=False, soft_wrap=False)
    return out if out.is_terminal else Console(highlight=False, width=_PIPE_WIDTH)


def state(body: Body) -> RenderableType:
    """`/ops/state`."""
    loop, threshold = body["reassessment"], body["threshold"]
    value = "each exit's own" if threshold["value"] is None else threshold["value"]
    lines = [
        ("deployment", f"{body['deployment']}, Redis {body['redis']}"),
        (
            "queue",
            f"{body['waiting']} waiting ({body['queued_tokens']} tokens, {body['held']} held by a change)",
        ),
        ("running", f"{body['running']}{', the server is ending' if body['is_draining'] else ''}"),
        ("refused", ", ".join(f"{number} {kind}" for kind, number in body["refusals"].items()) or "none"),
        ("threshold", f"{value}{', set by ' + threshold['by'] if threshold['by'] else ''}"),
        ("agreement", _agreement(body)),
        ("pinned", body["pinned"] or "nothing"),
        ("loop", _loop(loop)),
    ]
    shards = _table("SHARD STATE MODEL VERSION >DEPTH MODE >BATCH >KV >FOUND >HEARD >DEATHS")
    for shard in body["shards"]:
        heard = shard["heartbeat_age_ms"]
        _row(
            shards,
            shard["id"],
            shard["state"] + (f" ({shard['swap_phase']})" if shard["swap_phase"] else ""),
            shard["model"],
            shard["version"],
            f"{shard['depth']}/{shard['num_layers']}",
            shard["exit_mode"],
            shard["running"],
            f"{shard['num_blocks'] - shard['num_free_blocks']}/{shard['num_blocks']}",
            _found(shard["cache"]),
            "never" if heard is None else duration(heard / 1000),
            shard["num_deaths"],
        )
    candidates = _table("CANDIDATE >DEPTH PROMPTS >REQUESTS >TOK/S >AGREEMENT >ITL_P95")
    for candidate in body["candidates"]:
        for row in candidate["measured"] or [{}]:
            agreement = row.get("agreement")
            _row(
                candidates,
                candidate["candidate"],
                f"{candidate['depth']}/{candidate['num_layers']}",
                row.get("prompts", "") or ("all" if row else "not measured"),
                row.get("num_requests", "-"),
                rounded(row.get("throughput")),
                percent(agreement[0] if isinstance(agreement, list) else (agreement or {}).get("value")),
                milliseconds(row.get("itl_p95_ms")),
            )
    return Group(_pairs(lines), shards, candidates)


def decisions(bodies: Iterable[Body]) -> RenderableType:
    """`/ops/decisions`."""
    table = _table("TAKEN ID BY KIND CHOSEN OUTCOME WHY")
    for body in bodies:
        why = body["error"] or body["why"]
        _row(
            table,
            clock(body["at"]),
            body["id"],
            body["by"],
            body["kind"],
            choice(body["chosen"]),
            body["outcome"] or "under way",
            why,
        )
    return table


def decision(body: Body) -> RenderableType:
    """One decision with all that is known of it."""
    source = f" from {body['origin']}" if body["origin"] else ""
    phases = ", ".join(f"{name} {milliseconds(ms)} ms" for name, ms in body["phases_ms"].items())
    lines = [
        ("id", body["id"]),
        ("taken", f"{clock(body['at'])} by {body['by']}{source}, at router {body['router'] or '-'}"),
        ("what", f"{body['kind']} {choice(body['chosen'])}".strip()),
        ("why", body["why"]),
        ("outcome", body["outcome"] or "under way"),
        ("error", body["error"] or ""),
        ("phases", phases),
        ("cost", ", ".join(f"{name} {rounded(value)}" for name, value in body["cost"].items())),
        ("seen", _plain(body["seen"])),
        *(("considered", _plain(entry)) for entry in body["considered"]),
    ]
    return _pairs((name, text) for name, text in lines if text)


def requests(bodies: Iterable[Body]) -> RenderableType:
    """`/ops/requests`."""
    table = _table(">ID LABEL STATUS OUTCOME SHARD MODEL >PROMPT >TOKENS >OF >AGE")
    for body in bodies:
        _row(
            table,
            body["id"],
            body["label"],
            body["status"],
            body["outcome"] or "",
            "" if body["shard"] is None else body["shard"],
            body["model"],
            body["num_prompt_tokens"],
            body["num_generated_tokens"],
            body["max_new_tokens"],
            duration(body["age_ms"] / 1000),
        )
    return table


def request(body: Body) -> RenderableType:
    """`/ops/requests/ID`."""
    row = body["request"]
    layer = body["mean_exit_layer"]
    shard = "" if row["shard"] is None else f", shard {row['shard']}"
    lines = [
        ("request", f"{row['id']} {row['label']}"),
        ("status", f"{row['status']}{' ' + row['outcome'] if row['outcome'] else ''}"),
        ("error", body["error"] or ""),
        ("model", f"{row['model']} {row['version']}{shard}"),
        (
            "tokens",
            f"{count(row['num_prompt_tokens'])} of prompt, {count(row['num_generated_tokens'])} generated",
        ),
        ("exits", "" if layer is None else f"after layer {rounded(layer)} on average"),
        ("moved", f"{row['num_preemptions']} preemptions, {row['num_shard_deaths']} deaths of a shard"),
    ]
    line = _table(">AFTER_MS WHAT SHARD MODEL >TOKENS")
    for moment in body["timeline"]:
        model = f"{moment['model']} at {moment['depth']} layers" if moment["model"] else ""
        shard = "" if moment["shard"] is None else moment["shard"]
        _row(
            line, milliseconds(moment["at_ms"]), moment["what"], shard, model, moment["num_generated_tokens"]
        )
    return Group(_pairs((name, text) for name, text in lines if text.strip()), line)


def diary_line(body: Body) -> str:
    """A decision in one line of `helios ops watch`."""
    what = f"{body['kind']} {choice(body['chosen'])}".strip()
    why = body["error"] or body["why"]
    return clean(f"{clock(body['at'])}  {body['outcome'] or 'under way':<11}  {body['by']}: {what}. {why}")


def _found(cache: Body) -> str:
    """The share of prompts' tokens that the prefix cache had."""
    return percent(cache["hit_tokens"] / cache["queried_tokens"]) if cache["queried_tokens"] else "-"


def _agreement(body: Body) -> str:
    overall, floor = body["agreement"]["overall"], percent(body["floor"])
    if overall is None:
        return f"not measured, floor {floor}"
    low, high = percent(overall["low"]), percent(overall["high"])
    return f"{percent(overall['agreement'])}, between {low} and {high}, floor {floor}"


def _loop(loop: Body) -> str:
    parts = [loop["state"]]
    if loop["serving"]:
        parts.append(f"serving {loop['serving']}")
    if loop["trying"]:
        parts.append(f"trying {loop['trying']}")
    if loop["next_in"] is not None:
        parts.append(f"compares again after {loop['next_in']} answers")
    parts += [f"{b['breaches']} of {b['tokens']} tokens of {b['choice']} breached" for b in loop["breaches"]]
    return "; ".join(parts) + (f". {loop['why']}" if loop["why"] else "")


def _plain(value: Any) -> str:
    """Fields of any shape in one line."""
    if isinstance(value, dict):
        return ", ".join(f"{name} {_plain(part)}" for name, part in value.items())
    if isinstance(value, list):
        return "[" + ", ".join(map(_plain, value)) + "]"
    return rounded(value) if isinstance(value, float) else str(value)


def _table(names: str) -> Table:
    """A table with columns of these names; those with `>` hold numbers."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, header_style="bold")
    for name in names.split():
        is_last = name in ("WHY", "WHAT")
        table.add_column(
            Text(name.lstrip(">").replace("_", " ")),
            justify="right" if name.startswith(">") else "left",
            overflow="fold" if is_last or name == "ID" else "ellipsis",
            no_wrap=not is_last,
            ratio=1 if name == "WHY" else None,
        )
    return table


def _row(table: Table, *cells: object) -> None:
    table.add_row(*(Text(clean(cell)) for cell in cells))


def _pairs(lines: Iterable[tuple[str, object]]) -> Table:
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name, text in lines:
        table.add_row(Text(name), Text(clean(text)))
    return table
