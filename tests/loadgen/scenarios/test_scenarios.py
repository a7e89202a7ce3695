"""Scenarios against the synthetic server: kept promises end with 0, broken ones with 1 and their name."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from loadgen.__main__ import main
from loadgen.scenarios.play import SCENARIOS, about
from loadgen.selftest.process import synthetic_server
from loadgen.selftest.server import Behaviour

NAMES = [
    *("smoke", "chat", "drift", "swap-under-load", "overload"),
    *("disconnects", "soak", "shared-prefix", "paper-miao"),
]


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with synthetic_server(Behaviour(ttft_ms=5, itl_ms=3, swap_ms=40, capacity=40)) as url:
        yield url


def played(capsys: pytest.CaptureFixture[str], *argv: str) -> tuple[int, dict[str, Any]]:
    code = main(["scenario", *argv, "--quiet"])
    line: dict[str, Any] = json.loads(capsys.readouterr().out.strip().splitlines()[-1])
    assert line["kept"] == (code == 0)
    return code, line


def test_every_scenario_says_what_it_shows(capsys: pytest.CaptureFixture[str]) -> None:
    assert [scenario.name for scenario in SCENARIOS] == NAMES
    assert main(["scenario", "list"]) == 0
    shown = capsys.readouterr().out
    assert all(f"  {name} " in shown for name in NAMES)
    assert "Plays a named scenario" in about()


@pytest.mark.parametrize("name", ["smoke", "chat", "drift", "disconnects"])
def test_a_well_behaved_server_keeps_its_promises(
    name: str, url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, line = played(capsys, name, "--url", url, "--scale", "0.05", "--out", str(tmp_path), "--rate", "8")
    assert (code, line["broken"]) == (0, [])
    assert "Promises" in (tmp_path / "report.html").read_text()
    assert json.loads((tmp_path / "scenario.json").read_text())["kept"]


def test_swaps_under_load_lose_nothing_and_change_no_answer(
    url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ["swap-under-load", "--url", url, "--scale", "0.03", "--concurrency", "12", "--exact-answers"]
    code, line = played(capsys, *argv, "--out", str(tmp_path))
    assert (code, line["broken"]) == (0, [])
    assert line["swaps"] == 2
    assert line["longest_gap_ms"] > 0
    assert (tmp_path / "report.html").read_text().count('class="mark"') >= 2


def test_overload_is_refused_at_once_and_survived(capsys: pytest.CaptureFixture[str]) -> None:
    with synthetic_server(Behaviour(ttft_ms=5, itl_ms=20, capacity=8)) as url:
        code, line = played(capsys, "overload", "--url", url, "--scale", "0.05", "--concurrency", "8")
    assert line["refused"] > 0
    kept = [promise["says"] for promise in line["promises"] if promise["is_kept"]]
    assert "No answer is lost." in kept
    assert "Refusals say when to come back." in kept
    assert "Afterwards the server answers as before." in kept
    assert set(line["broken"]) <= {
        "Refusals come at once."
    }  # a matter of time, which a busy machine may lack
    assert code == (1 if line["broken"] else 0)


def test_the_papers_figures_stand_beside_those_found(
    url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ["paper-miao", "--url", url, "--scale", "0.5", "--concurrency", "2", "--out", str(tmp_path)]
    code, line = played(capsys, *argv)
    assert code == 0
    assert line["gains"][0]["mean_exit_layer"] < 30
    assert "Beside the paper" in (tmp_path / "report.html").read_text()


def test_a_broken_promise_ends_with_one_and_names_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Prompts that make the synthetic server lose, double and mix answers."""
    faults = ["gap", "duplicate", "mixed", "half"]
    lines = [{"class": "chat", "prompt": f"[fault:{fault}] please"} for fault in faults]
    path = tmp_path / "faults.jsonl"
    path.write_text("\n".join(map(json.dumps, lines)))
    with synthetic_server(Behaviour(ttft_ms=2, itl_ms=1)) as url:
        argv = ["chat", "--url", url, "--dataset", str(path), "--rate", "20", "--scale", "0.02"]
        code, line = played(capsys, *argv)
    assert code == 1
    assert line["broken"] == [
        "No answer is lost.",
        "No answer is duplicated.",
        "No answer is mixed with another.",
    ]


def test_a_server_without_swaps_cannot_be_tried(capsys: pytest.CaptureFixture[str]) -> None:
    with synthetic_server(Behaviour(ttft_ms=2, itl_ms=1, kind="vllm")) as url:
        assert main(["scenario", "swap-under-load", "--url", url, "--quiet"]) == 2
    assert "lists no two candidates" in capsys.readouterr().err


def test_a_server_that_computes_everything_anew_is_no_sooner(
    url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, line = played(capsys, "shared-prefix", "--url", url, "--out", str(tmp_path), "--scale", "0.1")
    assert code == 1
    assert len(line["broken"]) == 1
    assert "Behind 100 tokens" in line["broken"][0]
    assert len(line["first_ms"]) == len(line["second_ms"]) == 5
