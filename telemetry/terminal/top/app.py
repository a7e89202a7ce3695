"""The screen of `helios top`: reads overviews from a source, and shows the latest until the next one."""

import asyncio
import time
from collections.abc import Sequence
from typing import ClassVar

from rich.text import Text
from textual import on
from textual.app import App, ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import VerticalScroll
from textual.screen import Screen
from textual.widgets import Static

from telemetry.overview import Overview
from telemetry.terminal.top.details import lines_of, title_of
from telemetry.terminal.top.grid import Grid, Key, fit
from telemetry.terminal.top.source import Away, Source
from telemetry.terminal.top.summary import histogram, summary
from telemetry.terminal.top.views import View, decisions, table_of
from telemetry.terminal.wording import clean, clock, duration

INTERVAL_S = 1.0
_TALL = 32  # lines from which on more models and decisions are shown
_KEYS = "s c d r: tables   arrows: move   enter: open   esc: back   q: quit"


class State:
    """What is known: the latest overview, and why there is no newer one. Ages go on while nothing is read."""

    def __init__(self) -> None:
        self.overview: Overview | None = None
        self.trouble = ""  # why the last attempt to read failed
        self._read_at = 0.0

    def learn(self, overview: Overview) -> None:
        self.overview, self.trouble, self._read_at = overview, "", time.monotonic()

    @property
    def age_s(self) -> float:
        """Age of what is shown."""
        if self.overview is None:
            return 0.0
        return (self.overview.age_s or 0.0) + time.monotonic() - self._read_at

    @property
    def is_stale(self) -> bool:
        """It is not what goes on now."""
        return bool(self.trouble) or self.overview is None or not self.overview.is_alive

    def title(self, width: int) -> Text:
        """The first line: the deployment, and how far what is below it is true."""
        overview = self.overview
        if overview is None:
            return Text(fit(f"helios top   {self.trouble or 'reading ...'}", width), style="bold reverse")
        num_down = sum(not router.is_alive for router in overview.routers)
        down = f", {num_down} down" if num_down and not self.is_stale else ""
        parts = [
            f"helios top   {clean(overview.deployment)}",
            f"{_plural(len(overview.routers), 'router')}{down}, {_plural(len(overview.shards), 'shard')}",
        ]
        if self.is_stale:
            why = self.trouble or ("No router writes." if overview.routers else "No router has written here.")
            parts.insert(1, f"OLD by {duration(self.age_s)}: {why}" if overview.routers else why)
        elif overview.redis != "ok":
            parts.insert(1, "REDIS LOST: this router alone, without figures")
        if num_objectives := {row.snapshot.objective for row in overview.routers} - {None}:
            parts.append(f"for {', '.join(sorted(map(str, num_objectives)))}")
        now = clock(time.time())
        left = fit("   ".join(parts), max(1, width - len(now) - 1))
        return Text(f"{left} {now}", style="bold reverse")


class Top(App[None]):
    """Four tables under a summary. It only reads."""

    ENABLE_COMMAND_PALETTE = False
    CSS = """
    Screen { layout: vertical; background: ansi_default; color: ansi_default; }
    Static { height: auto; }
    #title, #tabs, #keys { height: 1; }
    Grid { height: 1fr; min-height: 3; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("s,1", "view('shards')"),
        Binding("c,2", "view('candidates')"),
        Binding("d,3", "view('decisions')"),
        Binding("r,4", "view('requests')"),
        Binding("q", "quit"),
    ]

    def __init__(self, source: Source, interval_s: float = INTERVAL_S):
        super().__init__(ansi_color=True)
        self.state = State()
        self.view = View.SHARDS
        self._source = source
        self._interval_s = interval_s
        self._read = asyncio.Event()

    def compose(self) -> ComposeResult:
        yield Static(id="title")
        yield Static(id="summary")
        yield Static(id="exits")
        yield Static(id="tabs")
        yield Grid()
        yield Static(id="last")
        yield Static(id="keys")

    def on_mount(self) -> None:
        self.query_one(Grid).focus()
        self.refresh_all()
        self.run_worker(self._keep_reading(), exclusive=True)

    async def on_unmount(self) -> None:
        await self._source.close()

    async def has_read(self) -> None:
        """Wait until the source was read once more from now on."""
        self._read.clear()
        await self._read.wait()

    def action_view(self, name: str) -> None:
        """Show another table, also from a detail."""
        while len(self.screen_stack) > 1:
            self.pop_screen()
        self.view = View(name)
        self.refresh_all()

    @on(Grid.Opened)
    def open(self, message: Grid.Opened) -> None:
        """Show the chosen row with all that is known of it."""
        self.push_screen(Detail(message.key, self.state))

    def on_resize(self) -> None:
        self.refresh_all()

    def refresh_all(self) -> None:
        """Draw the state anew."""
        if isinstance(self.screen, Detail):
            self.screen.refresh_all()
            return
        if not self.query("#title"):
            return  # not composed yet
        width, is_tall = self.size.width, self.size.height >= _TALL
        overview = self.state.overview
        self.query_one("#title", Static).update(self.state.title(width))
        self.query_one("#keys", Static).update(Text(fit(_KEYS, width), style="dim"))
        if overview is None:
            return
        style = "dim" if self.state.is_stale else ""
        self._show("#summary", summary(overview, width), style)
        self._show("#exits", histogram(overview, width, 6 if is_tall else 2), style)
        columns, rows = table_of(self.view, overview)
        grid = self.query_one(Grid)
        grid.show(columns, rows, self.state.is_stale)
        self.query_one("#tabs", Static).update(self._tabs(grid.position, width))
        num_last = 0 if self.view is View.DECISIONS else 8 if is_tall else 3
        last = [_one_line(row.cells, width) for row in decisions(overview)[:num_last]]
        if num_last:
            last.insert(0, Text(fit("LAST DECISIONS", width), style="bold underline"))
        self._show("#last", last, style)

    def _show(self, name: str, lines: Sequence[Text], style: str) -> None:
        text = Text("\n").join(lines)
        text.stylize(style)
        self.query_one(name, Static).update(text)

    def _tabs(self, position: str, width: int) -> Text:
        tabs = Text(no_wrap=True)
        for view in View:
            tabs.append(f" {view} ", style="bold reverse" if view is self.view else "")
            tabs.append(" ")
        missing = width - tabs.cell_len - len(position) - 1
        return tabs.append(" " * max(0, missing) + position)

    async def _keep_reading(self) -> None:
        while True:
            due = time.monotonic() + self._interval_s
            try:
                self.state.learn(await self._source.read())
            except Away as away:
                self.state.trouble = str(away)
            self.refresh_all()
            self._read.set()
            await asyncio.sleep(max(0.05, due - time.monotonic()))


class Detail(Screen[None]):
    """What a row opens, kept up to date."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape,backspace,left,h", "back"),
        Binding("j", "scroll(1)"),
        Binding("k", "scroll(-1)"),
    ]

    def __init__(self, key: Key, state: State):
        super().__init__()
        self._key = key
        self._state = state

    def compose(self) -> ComposeResult:
        yield Static(id="title")
        with VerticalScroll():
            yield Static(id="lines")
        yield Static(id="keys")

    def on_mount(self) -> None:
        self.query_one(VerticalScroll).focus()
        self.refresh_all()

    def on_resize(self) -> None:
        self.refresh_all()

    def action_back(self) -> None:
        self.dismiss()

    def action_scroll(self, by: int) -> None:
        self.query_one(VerticalScroll).scroll_relative(y=by, animate=False)

    def refresh_all(self) -> None:
        overview, width = self._state.overview, self.app.size.width
        if overview is None or not self.query("#title"):
            return
        text = Text("\n").join(
            [Text(title_of(self._key), style="bold underline"), *lines_of(self._key, overview, width - 2)]
        )
        text.stylize("dim" if self._state.is_stale else "")
        self.query_one("#title", Static).update(self._state.title(width))
        self.query_one("#lines", Static).update(text)
        self.query_one("#keys", Static).update(Text(fit(_KEYS, width), style="dim"))


def _one_line(cells: Sequence[str], width: int) -> Text:
    taken, by, kind, chosen, outcome, why = cells
    what = f"{kind} {chosen}".strip()
    return Text(fit(f"{taken}  {outcome}  {by}: {what}. {why}", width))


def _plural(number: int, noun: str) -> str:
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"
