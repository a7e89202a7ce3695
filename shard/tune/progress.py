"""Progress of tuning: a bar with loss, agreement and time left, or lines in a file."""

import time
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bars

LINE_SECONDS = 30.0  # between lines without a terminal


class Progress:
    """One bar for each stage; without a terminal, periodic lines."""

    def __init__(self, console: Console):
        self.console = console
        self._bars = Bars(
            TextColumn("{task.description}"),
            BarColumn(20),
            TextColumn("{task.completed}/{task.total}"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
            console=console,
            disable=not console.is_terminal,
        )
        self._tasks: dict[str, int] = {}
        self._last_line = 0.0

    def __enter__(self) -> Self:
        self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bars.stop()

    def tell(self, stage: str, done: int, total: int, note: str = "") -> None:
        """Show the progress of a stage."""
        if not self.console.is_terminal:
            self._line(stage, done, total, note)
            return
        if stage not in self._tasks:
            self._tasks[stage] = self._bars.add_task(stage, total=total, note=note)
        self._bars.update(self._tasks[stage], completed=done, total=total, note=note)  # type: ignore[arg-type]

    def _line(self, stage: str, done: int, total: int, note: str) -> None:
        now = time.monotonic()
        if done == total or now - self._last_line >= LINE_SECONDS:
            self._last_line = now
            self.console.print(f"{stage} {done}/{total} {note}".rstrip(), soft_wrap=True)
