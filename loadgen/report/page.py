"""A self-contained HTML page about one or several runs, including style, script and plots."""

from collections.abc import Sequence
from datetime import UTC, datetime
from html import escape
from importlib.resources import files

from loadgen.report import plots
from loadgen.report.page_parts import Section, card, number, table
from loadgen.report.server_section import server_sections
from loadgen.report.tables import MEASURES
from loadgen.results.health import Verdict
from loadgen.results.stats import Distribution
from loadgen.results.summary import Summary


def page_of(
    summaries: Sequence[Summary], title: str = "", intro: str = "", sections: Sequence[Section] = ()
) -> str:
    """The whole page. Several runs' curves share a plot."""
    first = summaries[0]
    heading = title or f"{first.server_info.model} under load"
    style = (files("loadgen.report") / "report.css").read_text()
    script = (files("loadgen.report") / "report.js").read_text()
    body = [_header(heading, intro, summaries), *(_section(section) for section in sections)]
    body += [_tiles(summaries), _statements(summaries), _section(_latency_section(summaries))]
    body += [_section(_time_section(summary, len(summaries) > 1)) for summary in summaries]
    body += [_section(part) for summary in summaries for part in _depth_sections(summary)]
    body += [_section(part) for summary in summaries for part in server_sections(summary)]
    body += [_section(_outcome_section(summaries))]
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<link rel="icon" href="data:,">'
        f"<title>{escape(heading)}</title><style>{style}</style></head><body>{''.join(body)}"
        "<footer>Latencies count from the intended start of each request.</footer>"
        f"<script>{script}</script></body></html>"
    )


def _section(section: Section) -> str:
    return f"<section><h2>{escape(section.heading)}</h2>{section.html}</section>"


def _header(heading: str, intro: str, summaries: Sequence[Summary]) -> str:
    first = summaries[0]
    when = datetime.fromtimestamp(first.began_at_s, UTC).strftime("%Y-%m-%d %H:%M UTC")
    where = ", ".join(dict.fromkeys(f"{s.url} ({s.server_info.kind})" for s in summaries))
    chips = "".join(
        f"<span>{escape(name.replace('_', ' '))} <b>{escape(_words(value))}</b></span>"
        for name, value in first.settings.items()
    )
    said = f'<p class="sub">{escape(intro)}</p>' if intro else ""
    about = f'<p class="sub">{escape(where)}, model {escape(first.server_info.model)}, {when}</p>'
    return f'<h1>{escape(heading)}</h1>{about}{said}<div class="chips">{chips}</div>'


def _words(value: object) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def _tiles(summaries: Sequence[Summary]) -> str:
    return "".join(_tile_row(summary, len(summaries) > 1) for summary in summaries)


def _tile_row(summary: Summary, is_one_of_many: bool) -> str:
    rates, latencies = summary.throughput, summary.latencies
    tiles = [
        ("output tokens/s", number(rates.output_tokens_per_s), ""),
        ("requests/s", number(rates.requests_per_s), ""),
        ("TTFT p50 / p95, ms", _pair(latencies.ttft), ""),
        ("ITL p50 / p95, ms", _pair(latencies.itl), ""),
        ("answered", f"{summary.outcomes.get('ok', 0):,}", f" of {summary.num_requests:,}"),
    ]
    if summary.slo.are_stated and rates.good_share is not None:
        tiles.append((f"good ({summary.slo.words})", f"{rates.good_share:.1%}", ""))
    if summary.cached_share is not None:
        tiles.append(("input tokens cached", f"{summary.cached_share:.1%}", ""))
    if summary.exits is not None:
        layers = f" of {summary.server_info.num_layers}" if summary.server_info.num_layers else ""
        tiles.append(("mean exit depth", number(summary.exits.total.mean_layer), layers))
    drawn = "".join(
        f'<div class="tile"><div class="value">{value}<small>{unit}</small></div>'
        f'<div class="name">{escape(name)}</div></div>'
        for name, value, unit in tiles
    )
    label = f'<h3 class="run">{escape(summary.label)}</h3>' if is_one_of_many else ""
    return f'{label}<div class="tiles">{drawn}</div>'


def _pair(found: Distribution | None) -> str:
    return "–" if found is None else f"{number(found.p50)} / {number(found.p95)}"


def _statements(summaries: Sequence[Summary]) -> str:
    """Caveats about the figures."""
    parts = []
    colours = {Verdict.FINE: "good", Verdict.STRAINED: "warn", Verdict.SATURATED: "bad"}
    for summary in summaries:
        whole = summary.integrity
        name = f"{summary.label}: " if len(summaries) > 1 else ""
        if whole.is_whole:
            parts.append(("good", f"{name}No answer was lost, duplicated or mixed."))
        else:
            broken = f"{whole.lost} lost, {whole.duplicated} duplicated, {whole.mixed} mixed"
            parts.append(("bad", f"{name}{broken}: {'; '.join(whole.examples[:3])}"))
        parts.append((colours[summary.client.verdict], name + summary.client.says))
        parts += [("warn", name + note) for note in summary.notes]
    return "".join(f'<p class="says {colour}">{escape(words)}</p>' for colour, words in parts)


def _latency_section(summaries: Sequence[Summary]) -> Section:
    cards = "".join(card(heading, html) for heading, html in plots.latency_curves(summaries))
    rows = [
        _latency_row(name, field, summary, len(summaries) > 1)
        for summary in summaries
        for field, name in MEASURES
    ]
    header = ("ms", "mean", "p50", "p90", "p95", "p99", "p99.9", "max", "samples")
    figures = card("Percentiles", table(header, [row for row in rows if row]))
    groups = [
        [escape(group), *(number(getattr(getattr(found, field), "p50", None)) for field, _ in MEASURES[:4])]
        for group, found in summaries[0].by_group.items()
    ]
    by_group = (
        card("Medians by class, ms", table(("class", "TTFT", "ITL", "TPOT", "E2E"), groups)) if groups else ""
    )
    return Section("Latency", f'<div class="cards">{cards}{figures}{by_group}</div>')


def _latency_row(name: str, field: str, summary: Summary, is_one_of_many: bool) -> list[str]:
    found: Distribution | None = getattr(summary.latencies, field)
    if found is None:
        return []
    points = (found.mean, found.p50, found.p90, found.p95, found.p99, found.p999, found.max)
    label = f"{summary.label} {name}" if is_one_of_many else name
    return [escape(label), *(number(value) for value in points), f"{found.count:,}"]


def _time_section(summary: Summary, is_one_of_many: bool) -> Section:
    cards = "".join(card(heading, html) for heading, html in plots.over_time(summary))
    note = f'<p class="sub below">Shaded: measured {escape(summary.window.rule)}.</p>'
    heading = f"Over time: {summary.label}" if is_one_of_many else "Over time"
    return Section(heading, f'<div class="cards">{cards}</div>{note}')


def _depth_sections(summary: Summary) -> list[Section]:
    sections = []
    if summary.exits is not None:
        cards = "".join(card(heading, html) for heading, html in plots.depth(summary))
        sections.append(Section("Depth", f'<div class="cards">{cards}</div>'))
    if summary.swaps:
        sections.append(Section("Swaps", card("As streams saw them", _swap_table(summary))))
    if summary.versions:
        rows = [
            [
                escape(v.model),
                escape(v.version[:16]),
                str(v.depth or "–"),
                f"{v.num_requests:,}",
                f"{v.first_s:.1f} s – {v.last_s:.1f} s",
            ]
            for v in summary.versions
        ]
        answered = table(("model", "version", "depth", "requests", "begun"), rows, (1,))
        sections.append(Section("Who answered", card("Versions named in answers", answered)))
    return sections


def _swap_table(summary: Summary) -> str:
    rows = [
        [
            str(index),
            f"{swap.at_s:.1f} s",
            escape(swap.to),
            escape(swap.outcome),
            ", ".join(f"{escape(phase)} {number(ms)} ms" for phase, ms in swap.phases_ms.items()) or "–",
            str(swap.num_streams),
            f"{number(swap.longest_gap_ms)} ms",
            f"{number(swap.median_gap_ms)} ms",
            escape(swap.why),
        ]
        for index, swap in enumerate(summary.swaps, start=1)
    ]
    header = ("", "at", "to", "outcome", "phases", "streams", "longest gap", "median gap", "why")
    return table(header, rows, (2, 3, 4, 8))


def _outcome_section(summaries: Sequence[Summary]) -> Section:
    rows = [
        [
            escape(name.replace("_", " ")),
            f"{count:,}",
            f"{count / max(1, s.num_requests):.1%}",
            escape(s.label),
        ]
        for s in summaries
        for name, count in sorted(s.outcomes.items(), key=lambda item: -item[1])
    ]
    header = ("outcome", "requests", "share", "run")
    cut = 4 if len(summaries) > 1 else 3
    html = card("How requests ended", table(header[:cut], [row[:cut] for row in rows], (3,)))
    failures = [[escape(words), str(n)] for summary in summaries for words, n in summary.failures.items()]
    if failures:
        html += card("Failures", table(("what", "times"), failures))
    return Section("Outcomes", f'<div class="cards">{html}</div>')
