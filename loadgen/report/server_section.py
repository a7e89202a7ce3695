"""The server's section of the page: its metrics and its candidates."""

from html import escape

from loadgen.report.page_parts import Section, card, number, table
from loadgen.results.summary import Summary


def server_sections(summary: Summary) -> list[Section]:
    """The server's sections; empty if it reports nothing."""
    says = summary.server
    if says.is_silent:
        return []
    memory = None if says.most_resident_bytes is None else says.most_resident_bytes / 2**20
    rows = [
        ("most running", number(says.most_running)),
        ("most waiting", number(says.most_waiting)),
        ("fullest KV cache", "–" if says.most_kv_usage is None else f"{says.most_kv_usage:.1%}"),
        ("preemptions", number(says.preemptions)),
        ("drafted tokens", number(says.drafted)),
        ("accepted drafts", number(says.accepted)),
        ("mean time in queue, ms", number(says.mean_queue_ms)),
        ("largest memory, MiB", number(memory)),
    ]
    html = card("Its metrics", table(("", ""), [row for row in rows if row[1] != "–"]))
    if says.candidates:
        names = list(dict.fromkeys(name for row in says.candidates for name in row))
        cells = [[escape(_cell(row.get(name))) for name in names] for row in says.candidates]
        html += card("Its candidates", table([name.replace("_", " ") for name in names], cells))
    return [Section("The server's own word", f'<div class="cards">{html}</div>')]


def _cell(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else "–" if value is None else str(value)
