import io
from array import array
from collections import deque

import msgspec
import pytest
from rich.console import Console

from loadgen.client.records import Outcome
from loadgen.load.live import LiveView, PlainView, draw
from loadgen.load.progress import Progress, Snapshot
from tests.loadgen.making import record

SNAPSHOT = Snapshot(
    "load on x", 12.0, 30.0, None, 50, 8, {"ok": 40, "stall": 2}, 900, 75.0, 80.0, 120.0, 20.0, 1.0, "m v1"
)


class Meter:
    lags = array("d", [0.003])


def test_a_look_counts_what_ended_and_what_is_open() -> None:
    records = [record(0.0, [0.1, 0.2]), record(0.0, [0.1], outcome=Outcome.RESET)]
    open_one = record(0.0, [0.3], outcome=Outcome.PENDING)
    open_one.ended = None
    progress = Progress("x", [*records, open_one], Meter())
    for _ in range(2):  # a second look must not count twice
        found = progress.snapshot(None, 10)
        assert (found.started, found.open, found.ended, found.tokens) == (3, 1, {"ok": 1, "reset": 1}, 4)
    assert found.ttft_p50_ms == pytest.approx(100)
    assert found.lag_ms == 3


def test_a_picture_shows_the_figures() -> None:
    console = Console(file=io.StringIO(), width=100)
    console.print(draw(SNAPSHOT, deque([1.0, 5.0, 3.0])))
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    for words in ("load on x", "answered 40", "2 stall", "80.0 ms", "75 tokens/s", "12 s of 30 s", "m v1"):
        assert words in shown


def test_the_drawing_process_ends_with_its_feeder() -> None:
    view = LiveView()
    for _ in range(3):
        view.show(SNAPSHOT)
    view.close()
    assert view.process.returncode == 0


def test_a_drawing_process_that_is_gone_or_slow_does_not_disturb() -> None:
    view = LiveView()
    view.process.kill()
    for _ in range(2000):
        view.show(SNAPSHOT)
    view.close()


def test_a_log_gets_a_line_now_and_then(capsys: pytest.CaptureFixture[str]) -> None:
    view = PlainView(period_s=10)
    for elapsed in (5.0, 11.0, 12.0, 22.0):
        view.show(msgspec.structs.replace(SNAPSHOT, elapsed_s=elapsed))
    assert capsys.readouterr().err.count("8 open") == 2
