"""Parts of the page: sections, cards, tables, numbers. Texts are HTML, headings are plain text."""

from collections.abc import Sequence
from html import escape

import msgspec

from loadgen.report.charts import WIDE


class Section(msgspec.Struct, frozen=True):
    """A section of the page: a heading and HTML."""

    heading: str
    html: str


def table(header: Sequence[str], rows: Sequence[Sequence[str]], text_columns: Sequence[int] = ()) -> str:
    """A table; cells are HTML. The first column and `text_columns` are set to the left."""
    kinds = [' class="text"' if index in text_columns else "" for index in range(len(header))]
    head = "".join(f"<th{kind}>{escape(name)}</th>" for kind, name in zip(kinds, header, strict=True))
    lines = []
    for row in rows:
        cells = (f"<td{kind}>{cell}</td>" for kind, cell in zip(kinds, row, strict=True))
        lines.append(f"<tr>{''.join(cells)}</tr>")
    body = "".join(lines)
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def card(heading: str, html: str, note: str = "") -> str:
    """A box on the page; a wide plot or many columns take the width of two."""
    below = f'<p class="note">{escape(note)}</p>' if note else ""
    is_wide = f'viewBox="0 0 {WIDE} ' in html or html.count("<th") > 7
    return f'<div class="card{" wide" if is_wide else ""}"><h3>{escape(heading)}</h3>{html}{below}</div>'


def number(value: float | None) -> str:
    if value is None:
        return "–"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
