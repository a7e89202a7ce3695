"""The live view of a run, drawn by a separate process.

Drawing takes milliseconds, during which the event loop could not timestamp reads. So the load generator only
writes a line of JSON periodically, and this process (`python -m loadgen.load.live`) draws.
"""

import contextlib
import os
import subprocess
import sys
from collections import deque

import msgspec
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from loadgen.load.progress import Snapshot

SPARKS = "▁▂▃▄▅▆▇█"
KEPT = 60  # speeds in the sparkline


class LiveView:
    """The load generator's side: starts the drawing process and sends it snapshots without waiting."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "loadgen.load.live"], stdin=subprocess.PIPE, start_new_session=True
        )
        assert self.process.stdin is not None
        self._pipe = self.process.stdin.fileno()
        os.set_blocking(self._pipe, False)

    def show(self, snapshot: Snapshot) -> None:
        with contextlib.suppress(BlockingIOError, BrokenPipeError):  # a slow terminal skips a frame
            os.write(self._pipe, msgspec.json.encode(snapshot) + b"\n")

    def close(self) -> None:
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()
        try:
            self.process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait(timeout=5)


class PlainView:
    """For a log instead of a terminal: a line every ten seconds."""

    def __init__(self, period_s: float = 10.0):
        self._period_s = period_s
        self._next_s = period_s

    def show(self, snapshot: Snapshot) -> None:
        if snapshot.elapsed_s < self._next_s:
            return
        self._next_s = snapshot.elapsed_s + self._period_s
        ended = ", ".join(f"{count} {name}" for name, count in sorted(snapshot.ended.items()))
        head = f"{snapshot.elapsed_s:6.0f} s  {snapshot.open} open"
        print(f"{head}  {ended}  {snapshot.tokens_per_s:.0f} tokens/s", file=sys.stderr, flush=True)

    def close(self) -> None:
        pass


class NoView:
    """For quiet runs."""

    def show(self, snapshot: Snapshot) -> None:
        pass

    def close(self) -> None:
        pass


View = LiveView | PlainView | NoView


def choose_view(is_quiet: bool) -> View:
    if is_quiet:
        return NoView()
    return LiveView() if sys.stderr.isatty() else PlainView()


def draw(snapshot: Snapshot, speeds: deque[float]) -> Panel:
    """One frame of the live view."""
    table = Table.grid(padding=(0, 3))
    for cells in _rows(snapshot):
        table.add_row(*(Text.from_markup(cell) for cell in cells))
    line = Text(f"{_sparkline(speeds)} {snapshot.tokens_per_s:,.0f} tokens/s", style="cyan")
    parts: list[RenderableType] = [_progress(snapshot), Text(), table, Text(), line]
    if snapshot.note:
        parts.append(Text(snapshot.note, style="magenta"))
    return Panel(Group(*parts), title=f"[bold]{snapshot.title}", border_style="dim", padding=(1, 2), width=92)


def _progress(snapshot: Snapshot) -> Table:
    done, total = snapshot.elapsed_s, snapshot.planned_s
    label = f"{snapshot.elapsed_s:.0f} s"
    if snapshot.planned_requests is not None:
        done, total = sum(snapshot.ended.values()), snapshot.planned_requests
        label = f"{done} of {total} requests, {label}"
    elif total is not None:
        label += f" of {total:.0f} s"
    grid = Table.grid(padding=(0, 2))
    bar = ProgressBar(total=total or 1, completed=done, width=48, pulse=total is None)
    grid.add_row(bar, Text(label))
    return grid


def _rows(snapshot: Snapshot) -> list[tuple[str, str, str]]:
    ended = snapshot.ended
    good = {"ok", "refused", "cancelled", "pending"}
    failed = {name: count for name, count in ended.items() if name not in good}
    trouble = ", ".join(f"{count} {name.replace('_', ' ')}" for name, count in sorted(failed.items()))
    lag = f"{snapshot.lag_ms:.1f} ms"
    return [
        (
            f"open [bold]{snapshot.open}[/]",
            f"answered [bold green]{ended.get('ok', 0)}[/]",
            f"refused [bold yellow]{ended.get('refused', 0)}[/]  cancelled {ended.get('cancelled', 0)}",
        ),
        (
            f"TTFT p50 [bold]{_ms(snapshot.ttft_p50_ms)}[/]",
            f"p95 [bold]{_ms(snapshot.ttft_p95_ms)}[/]",
            f"time per token p50 [bold]{_ms(snapshot.tpot_p50_ms)}[/]",
        ),
        (
            f"failed [bold red]{trouble}[/]" if trouble else "failed 0",
            f"client lag {lag}" if snapshot.lag_ms < 5 else f"[red]client lag {lag}[/]",
            snapshot.answered_by,
        ),
    ]


def _ms(value: float | None) -> str:
    return "-" if value is None else f"{value:,.0f} ms" if value >= 100 else f"{value:.1f} ms"


def _sparkline(speeds: deque[float]) -> str:
    top = max(speeds, default=0.0) or 1.0
    return "".join(SPARKS[min(7, int(speed / top * 7.99))] for speed in speeds)


def main() -> None:
    """Draw snapshots from standard input until it ends."""
    speeds: deque[float] = deque(maxlen=KEPT)
    with Live(console=Console(stderr=True), auto_refresh=False, transient=True) as live:
        for line in sys.stdin.buffer:
            snapshot = msgspec.json.decode(line, type=Snapshot)
            speeds.append(snapshot.tokens_per_s)
            live.update(draw(snapshot, speeds), refresh=True)


if __name__ == "__main__":
    main()
