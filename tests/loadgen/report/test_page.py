"""The HTML report: whole in itself, well formed, and drawn by a real browser without complaint."""

import re
import shutil
import subprocess
from array import array
from html.parser import HTMLParser
from pathlib import Path

import msgspec
import pytest

from loadgen.client.ops import Decision
from loadgen.client.records import Outcome, Segment
from loadgen.client.scrape import Scrape
from loadgen.load.run import Run
from loadgen.load.slo import SLO
from loadgen.load.trim import Trim
from loadgen.report.export import export
from loadgen.report.page import page_of
from loadgen.report.page_parts import Section
from loadgen.report.scales import linear, logarithmic, short
from loadgen.results.summary import Summary, summarise
from tests.loadgen.making import record, run_of

CHROMIUM = shutil.which("chromium")
VOID = {"meta", "link", "br", "line", "circle", "rect", "path", "i"}


def eventful_run() -> Run:
    """Two classes, two swaps, refusals, a failure with markup in its message."""
    decisions = [
        Decision(f"d{i}", 1000.0 + at, "loop", "swap", "small@10", "<cheaper>", "committed", {"commit": 50.0})
        for i, at in enumerate((5.0, 9.0))
    ]
    records = []
    for i in range(120):
        at = i * 0.1
        times = [at + 0.2 + 0.05 * k for k in range(8)]
        layers = array("H", [10, 20, 30, 10, 10, 20, 10, 10])
        segments = [Segment("large" if at < 5 else "small", "aa" if at < 5 else "bb", 30, 0)]
        records.append(
            record(
                at, times, number=i, group="chat" if i % 3 else "code", exit_layers=layers, segments=segments,
                confidences=array("d", [0.5] * 8),
            )
        )  # fmt: skip
    records.append(record(6.0, outcome=Outcome.REFUSED, ended=6.1))
    records.append(record(7.0, outcome=Outcome.GARBAGE, ended=7.1, detail="<script>alert(1)</script>"))
    state = {"candidates": [{"candidate": "small", "depth": 10, "agreement": 0.9712}]}
    scrapes = [Scrape(float(at), {"tgi_queue_size": float(at), "helios_kv_blocks": 8.0}) for at in range(12)]
    return run_of(records, decisions=decisions, settings={"rate": "10"}, state=state, scrapes=scrapes)


def summary() -> Summary:
    return summarise(eventful_run(), SLO.parse(("ttft:1s",)), Trim())


class Balance(HTMLParser):
    """Counts tags that are opened and not closed."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[str] = []

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.seen.append(tag)
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: object) -> None:
        self.seen.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag


def test_the_page_is_well_formed_and_needs_no_network() -> None:
    page = page_of([summary()], sections=[Section("Extra", "<p>more</p>")])
    balance = Balance()
    balance.feed(page)
    assert balance.open == []
    assert balance.seen.count("svg") >= 10
    assert not re.search(r"""(src|href)=["'](?!data:)""", page)
    assert not re.search(r"url\((?!data:)|@import", page)


def test_what_a_server_says_is_never_markup() -> None:
    page = page_of([summary()])
    assert "<script>alert" not in page
    assert "&lt;script&gt;alert" in page
    assert "&lt;cheaper&gt;" in page


def test_swaps_are_marked_and_depth_is_drawn() -> None:
    page = page_of([summary()])
    assert page.count('class="mark"') >= 2 * 6
    assert page.count('class="cell"') > 20
    assert "No answer was lost" not in page
    assert "1 lost" in page


def test_the_server_s_own_word_is_there() -> None:
    page = page_of([summary()])
    assert "0.9712" in page
    assert "most waiting" in page


def test_the_cached_share_is_there_where_the_server_tells() -> None:
    assert "tokens cached" not in page_of([summary()])
    assert "41.3%" in page_of([msgspec.structs.replace(summary(), cached_share=0.413)])


def test_several_runs_are_drawn_over_one_another() -> None:
    single = summary()
    other = msgspec.structs.replace(single, label="other")
    page = page_of([single, other], title="A & B")
    assert "A &amp; B" in page
    assert page.count('class="stroke c2"') >= 3


def test_a_run_without_an_answer_has_a_page() -> None:
    empty = summarise(run_of([record(0.0, outcome=Outcome.CONNECT, ended=0.1)]), SLO(), Trim())
    assert "nothing measured" in page_of([empty])


def test_all_files_are_written(tmp_path: Path) -> None:
    paths = export(tmp_path / "new" / "out", summary(), eventful_run())
    assert [path.name for path in paths] == [
        "summary.json",
        "timeline.csv",
        "latencies.csv",
        "requests.jsonl",
        "metrics.jsonl",
        "report.html",
    ]
    assert all(path.stat().st_size > 100 for path in paths)
    assert len(paths[4].read_text().splitlines()) == 12
    figures = msgspec.json.decode(paths[0].read_bytes())
    assert figures["latencies"]["ttft"]["p50"] == pytest.approx(200)
    lines = [msgspec.json.decode(line) for line in paths[3].read_bytes().splitlines()]
    assert len(lines) == 122
    assert lines[0]["token_ms"][:2] == [200, 250]
    assert lines[0]["exit_layers"][:3] == [10, 20, 30]
    header, first, *_ = paths[2].read_text().splitlines()
    assert header.startswith("measure,group,count,mean")
    assert first.startswith("ttft,all,")


def test_axes_have_round_ticks() -> None:
    assert linear([0.0, 87.0], 0, 100).ticks == [0, 20, 40, 60, 80, 100]
    assert linear([3.0, 3.0], 0, 100).at(3.0) > 0
    ticks = logarithmic([12.0, 900.0], 0, 100).ticks
    assert ticks == pytest.approx([20, 50, 100, 200, 500])
    assert [short(value) for value in (0.25, 20, 1500, 2e6)] == ["0.25", "20", "1.5k", "2M"]


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here")
def test_a_browser_draws_the_page_without_complaint(tmp_path: Path) -> None:
    page = tmp_path / "report.html"
    # The probe moves the pointer over a chart and writes down what it sees, for --dump-dom to show.
    probe = """<script>
      const chart = document.querySelector("svg[data-chart]");
      const box = chart.getBoundingClientRect();
      const place = {clientX: box.left + box.width / 2, clientY: box.top + 50, bubbles: true};
      chart.dispatchEvent(new MouseEvent("mousemove", place));
      const charts = [...document.querySelectorAll("svg.chart")];
      const drawn = charts.filter((one) => one.getBBox().width > 100).length;
      const tip = [...document.querySelectorAll(".tip")].filter((one) => !one.hidden).length;
      document.body.dataset.probe = `drawn=${drawn} tips=${tip}`;
    </script></body>"""
    page.write_text(page_of([summary()]).replace("</body>", probe))
    flags = [
        *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
        *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
        *("--enable-logging=stderr", "--v=0", "--dump-dom"),
    ]
    command = [str(CHROMIUM), *flags, f"--user-data-dir={tmp_path / 'profile'}", f"file://{page}"]
    shown = subprocess.run(command, capture_output=True, text=True, timeout=90, check=False)
    assert "CONSOLE" not in shown.stderr
    found = re.search(r'data-probe="drawn=(\d+) tips=(\d+)"', shown.stdout)
    assert found is not None, shown.stderr[-2000:]
    assert int(found.group(1)) == shown.stdout.count('<svg class="chart')
    assert found.group(2) == "1"
