"""`helios top --once`: the summary, all shards and the last decisions as plain lines."""

from collections.abc import Iterator, Sequence

from rich.cells import cell_len
from rich.text import Text

from telemetry.overview import Overview
from telemetry.terminal.top.grid import Column, GridRow, fit
from telemetry.terminal.top.summary import histogram, summary
from telemetry.terminal.top.views import View, table_of
from telemetry.terminal.wording import clean, duration

_MAX_DECISIONS = 10
_MAX_MODELS = 20


def lines(overview: Overview, width: int) -> Iterator[Text]:
    """Everything that the first screen shows, of any length."""
    age = overview.age_s
    if age is None:
        yield Text(f"No router has written to deployment {clean(overview.deployment)}.")
        return
    is_old = "" if overview.is_alive else f" No router is alive: this is {duration(age)} old."
    yield Text(f"Deployment {clean(overview.deployment)}, Redis {overview.redis}.{is_old}")
    yield from summary(overview, width)
    yield from histogram(overview, width, _MAX_MODELS)
    yield from _table(*table_of(View.SHARDS, overview))
    columns, rows = table_of(View.DECISIONS, overview)
    yield from _table(columns, rows[:_MAX_DECISIONS])


def _table(columns: Sequence[Column], rows: Sequence[GridRow]) -> Iterator[Text]:
    yield Text()
    widths = [
        max(len(column.name), *(cell_len(row.cells[i]) for row in rows), 0)
        for i, column in enumerate(columns)
    ]
    for cells in [tuple(column.name for column in columns), *(row.cells for row in rows)]:
        parts = zip(cells, widths, columns, strict=True)
        yield Text("  ".join(fit(cell, width, column.is_number) for cell, width, column in parts).rstrip())
