"""The papers' figures stand beside those found; what is replayed says so wherever it is shown."""

import io

import msgspec
from PIL import Image
from rich.console import Console

from loadgen.paper import published
from loadgen.paper.agreement import Quality
from loadgen.paper.outcome import outcomes_of
from loadgen.paper.plot import plot
from loadgen.paper.systems import EARLY, FULL, HELIOS
from loadgen.paper.table import REPLAYED, Report, line_of, report_of, show
from tests.loadgen.paper.parts import part

QUALITY = {name: Quality(0.96, 0.94, 0.98, 1.21, 48) for name in (FULL, EARLY, HELIOS)}


def report(is_replay: bool = True) -> Report:
    measured = part(is_replay)
    return report_of(measured, outcomes_of(measured), {} if is_replay else QUALITY)


def shown(report: Report) -> str:
    out = io.StringIO()
    show([report], Console(file=out, width=80))
    return out.getvalue()


def test_a_narrow_terminal_still_gets_every_figure():
    text = shown(report())
    for figure in (published.THROUGHPUT_GAIN, published.RESPONSE_TIME_GAIN, published.BATCH_GAIN):
        assert f"{figure}x" in text
    assert "2.00x (2.00 - 2.00)" in text
    assert "6 in 1087" in text
    assert "Cheaper." in text


def test_a_replay_has_no_agreement_and_says_what_it_is():
    text = shown(report())
    assert REPLAYED in text
    assert "0.960" not in text
    assert line_of([report()])["parts"][0]["is_replay"]


def test_real_answers_have_agreement_and_perplexity():
    text = shown(report(is_replay=False))
    assert REPLAYED not in text
    assert "0.940 - 0.980" in text
    assert "1.210" in text


def test_the_line_is_json_with_the_papers_figures():
    line = msgspec.json.decode(msgspec.json.encode(line_of([report()])))
    assert line["benchmark"] == "helios"
    assert line["paper"]["batch_gain"] == published.BATCH_GAIN
    gains = line["parts"][0]["outcomes"][0]["gains"][EARLY]
    assert round(gains["throughput"]["estimate"], 2) == 2.0


def test_the_plot_has_a_row_for_each_load(tmp_path):
    plot(tmp_path / "one.png", [report()])
    plot(tmp_path / "two.png", [report(), report(is_replay=False)])
    with Image.open(tmp_path / "one.png") as first, Image.open(tmp_path / "two.png") as two:
        assert first.width == two.width
        assert two.height > 1.7 * first.height
        assert len(first.getcolors(1 << 24) or []) > 4
