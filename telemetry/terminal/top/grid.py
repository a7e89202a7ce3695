"""A table of any number of rows: it lays out and draws only those in sight."""

from collections.abc import Sequence
from typing import ClassVar

import msgspec
from rich.cells import cell_len, set_cell_size
from rich.segment import Segment
from rich.style import Style
from textual import events
from textual.binding import Binding, BindingType
from textual.message import Message
from textual.strip import Strip
from textual.widget import Widget

from telemetry.terminal.wording import clean

_GAP = 2
_HEADER = Style(bold=True, underline=True)

Key = tuple[str | int, ...]


class Column(msgspec.Struct, frozen=True):
    """A column, as wide as what is in sight of it. Where room is short, the greatest `rank` goes first."""

    name: str
    is_number: bool = False
    rank: int = 0
    most: int = 24  # cells; the last column takes what is left


class GridRow(msgspec.Struct, frozen=True):
    """A row; `key` tells what it opens, and stays while its figures change."""

    key: Key
    cells: tuple[str, ...]
    style: str = ""


class Grid(Widget, can_focus=True):
    """Shows `rows`, with a cursor that stays on its row."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("up,k", "move(-1)", show=False),
        Binding("down,j", "move(1)", show=False),
        Binding("pageup", "page(-1)", show=False),
        Binding("pagedown", "page(1)", show=False),
        Binding("home", "end(-1)", show=False),
        Binding("end", "end(1)", show=False),
        Binding("enter", "open", show=False),
    ]

    class Opened(Message):
        """The row under the cursor was chosen."""

        def __init__(self, key: Key):
            self.key = key
            super().__init__()

    def __init__(self) -> None:
        super().__init__()
        self.is_stale = False
        self._columns: Sequence[Column] = ()
        self._rows: Sequence[GridRow] = ()
        self._cursor = 0
        self._first = 0  # row in sight
        self._widths: dict[int, int] = {}  # the greatest so far, so that columns do not move
        self._layout: list[tuple[int, Column, int]] = []  # index, column and width of those in sight

    @property
    def num_visible(self) -> int:
        return max(1, self.size.height - 1)

    @property
    def position(self) -> str:
        """Which rows are in sight, if not all."""
        num = len(self._rows)
        if num <= self.num_visible:
            return ""
        return f"{self._first + 1}-{min(num, self._first + self.num_visible)} of {num:,}"

    def show(self, columns: Sequence[Column], rows: Sequence[GridRow], is_stale: bool = False) -> None:
        """Replace what is shown; the cursor stays on the row with its key."""
        key = self._rows[self._cursor].key if self._cursor < len(self._rows) else None
        is_other = [column.name for column in columns] != [column.name for column in self._columns]
        self._columns, self._rows, self.is_stale = columns, rows, is_stale
        if is_other:
            self._cursor = self._first = 0
            self._widths.clear()
        else:
            self._cursor = next((index for index, row in enumerate(rows) if row.key == key), self._cursor)
        self._settle()

    def render_line(self, y: int) -> Strip:
        """One line: the header, else the row that is there."""
        if y == 0:
            names = tuple(column.name for column in self._columns)
            return self._strip(names, _HEADER)
        index = self._first + y - 1
        if index >= len(self._rows):
            return Strip.blank(self.size.width)
        row = self._rows[index]
        style = Style.parse(row.style)
        if self.is_stale:
            style = Style(dim=True)
        if index == self._cursor and self.has_focus:
            style += Style(reverse=True)
        return self._strip(row.cells, style)

    def action_move(self, by: int) -> None:
        self._cursor += by
        self._settle()

    def action_page(self, by: int) -> None:
        self.action_move(by * self.num_visible)

    def action_end(self, by: int) -> None:
        self.action_move(by * len(self._rows))

    def action_open(self) -> None:
        if self._rows:
            self.post_message(self.Opened(self._rows[self._cursor].key))

    def on_resize(self) -> None:
        self._widths.clear()
        self._settle()

    def on_mouse_scroll_down(self, _: events.MouseScrollDown) -> None:
        self.action_move(1)

    def on_mouse_scroll_up(self, _: events.MouseScrollUp) -> None:
        self.action_move(-1)

    def on_click(self, event: events.Click) -> None:
        if 0 < event.y <= len(self._rows) - self._first:
            self._cursor = self._first + event.y - 1
            self._settle()

    def _settle(self) -> None:
        """Keep the cursor on a row and in sight, and lay out what is."""
        self._cursor = max(0, min(self._cursor, len(self._rows) - 1))
        last_first = max(0, len(self._rows) - self.num_visible)
        least = self._cursor - self.num_visible + 1
        self._first = max(0, min(max(self._first, least), self._cursor, last_first))
        self._layout = self._laid_out()
        self.refresh()

    def _laid_out(self) -> list[tuple[int, Column, int]]:
        rows = self._rows[self._first : self._first + self.num_visible]
        columns = list(enumerate(self._columns))
        for index, column in columns:
            wanted = max([len(column.name), *(cell_len(row.cells[index]) for row in rows)])
            self._widths[index] = max(self._widths.get(index, 0), min(column.most, wanted))
        widths = self._widths
        while len(columns) > 1 and sum(widths[index] + _GAP for index, _ in columns) - _GAP > self.size.width:
            least = max(columns, key=lambda numbered: numbered[1].rank)
            if not least[1].rank:
                break
            columns.remove(least)
        laid_out = [(index, column, widths[index]) for index, column in columns]
        if laid_out and not laid_out[-1][1].is_number:
            index, column, _ = laid_out.pop()
            used = sum(width + _GAP for _, _, width in laid_out)
            laid_out.append((index, column, max(1, self.size.width - used)))
        return laid_out

    def _strip(self, cells: Sequence[str], style: Style) -> Strip:
        parts = [fit(cells[index], width, column.is_number) for index, column, width in self._layout]
        line = (" " * _GAP).join(parts)
        return Strip([Segment(set_cell_size(line, self.size.width), style)])


def fit(text: str, width: int, is_number: bool = False) -> str:
    """The text in exactly `width` cells, with an ellipsis where it is cut."""
    text = clean(text)
    missing = width - cell_len(text)
    if missing < 0:
        return set_cell_size(text, width - 1) + "…" if width > 1 else set_cell_size(text, width)
    return " " * missing + text if is_number else text + " " * missing
