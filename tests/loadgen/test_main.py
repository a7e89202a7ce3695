"""The commands as a person runs them, against the synthetic server in its own process."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from loadgen.__main__ import main
from loadgen.selftest.process import synthetic_server
from loadgen.selftest.server import Behaviour


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with synthetic_server(Behaviour(ttft_ms=5, itl_ms=2, swap_ms=40)) as url:
        yield url


@pytest.fixture(scope="module")
def slower_url() -> Iterator[str]:
    with synthetic_server(Behaviour(ttft_ms=5, itl_ms=8, kind="vllm")) as url:
        yield url


def last_line(capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    line: dict[str, Any] = json.loads(capsys.readouterr().out.strip().splitlines()[-1])
    return line


def test_serve_measures_shows_and_ends_in_json(
    url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ["serve", "--url", url, "--requests", "40", "--output-tokens", "10", "--out", str(tmp_path)]
    assert main(argv) == 0
    shown = capsys.readouterr().out
    for words in ("output tokens/s", "TTFT", "40 requests: 40 ok", "tokens left at layer", "report.html"):
        assert words in " ".join(shown.split()).replace("│ ", "")
    line = json.loads(shown.strip().splitlines()[-1])
    assert (line["requests"], line["outcomes"], line["lost"]) == (40, {"ok": 40}, 0)
    assert line["ttft_p50_ms"] > 0
    assert (tmp_path / "report.html").exists()


def test_serve_on_another_server_and_dialect(slower_url: str, capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["serve", "--url", slower_url, "--requests", "12", "--dialect", "chat", "--quiet"]
    assert main([*argv, "--output-tokens", "8", "--turns", "2"]) == 0
    line = last_line(capsys)
    assert line["server"] == "vllm"
    assert set(line["outcomes"]) == {"ok"}


def test_serve_in_an_open_loop_with_everything(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    argv = "--rate 20..60 --duration 1s --output-tokens uniform:4:12 --prefix-tokens 16 --input-tokens 40"
    more = "--cancel 30% --slo ttft:1s --eos ignore --exit-threshold 0.5 --quiet --drain 5s"
    assert main(["serve", "--url", url, *argv.split(), *more.split()]) == 0
    line = last_line(capsys)
    assert line["outcomes"]["ok"] > 10
    assert line["outcomes"]["cancelled"] > 0
    assert line["lost"] == 0


@pytest.mark.parametrize("kind", ["concurrency", "rate"])
def test_a_sweep_ends_and_tells_its_points(
    kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with synthetic_server(Behaviour(ttft_ms=30, itl_ms=2, capacity=6)) as url:
        argv = f"serve --url {url} --sweep {kind} --duration 600ms --output-tokens 6 --out {tmp_path}".split()
        argv += ["--rate", "40"] if kind == "rate" else []
        assert main(argv) == 0
    line = last_line(capsys)
    levels = [point["level"] for point in line["points"] if point["is_sustained"]]
    assert line["points"]
    assert line["sustained"] == max(levels, default=None)
    assert all(point["why"] for point in line["points"] if not point["is_sustained"])
    assert (tmp_path / "report.html").stat().st_size > 10_000


def test_compare_gives_ratios_and_equal_answers(
    url: str, slower_url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = [
        "compare",
        "--a",
        url,
        "--b",
        slower_url,
        "--names",
        "quick,slow",
        "--rounds",
        "3",
        "--requests",
        "24",
    ]
    more = ["--output-tokens", "12", "--dialect", "completions", "--out", str(tmp_path)]
    assert main([*argv, *more, "--same-answers", "100%", "--same-prompts", "4"]) == 0
    line = last_line(capsys)
    ratio = line["ratios"]["E2E mean"]
    assert ratio["low"] <= ratio["ratio"] <= ratio["high"]
    assert ratio["b_is"] in ("better", "worse", "open")
    assert line["same_answers"] == {"equal": 4, "of": 4}
    assert "slow against quick" in (tmp_path / "report.html").read_text()


def test_compare_fails_where_answers_had_to_be_equal(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    with synthetic_server(Behaviour(ttft_ms=5, itl_ms=2, swap_ms=1)) as other:
        swap(other)
        argv = ["compare", "--a", url, "--b", other, "--rounds", "1", "--requests", "4", "--quiet"]
        assert main([*argv, "--output-tokens", "8", "--same-answers", "50%", "--same-prompts", "2"]) == 1
    assert last_line(capsys)["same_answers"] == {"equal": 0, "of": 2}


def swap(url: str) -> None:
    """Have a synthetic server speak with another model's words."""
    import time
    import urllib.request

    body = json.dumps({"candidate": "synthetic-small"}).encode()
    urllib.request.urlopen(urllib.request.Request(f"{url}/ops/swap", body)).close()
    time.sleep(0.1)


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["serve", "--url", "http://127.0.0.1:9"], "is the server running"),
        (["serve", "--url", "nonsense://x"], "is not a URL"),
        (["serve", "--rate", "fast"], "not a positive number"),
        (["serve", "--trace", "/no/such/file"], "/no/such/file: No such file"),
        (["compare", "--a", "http://127.0.0.1:9"], "needs two servers"),
        (["scenario", "tango"], "no scenario 'tango'; there are smoke"),
        (["scenario", "smoke", "--scale", "0"], "--scale"),
        (["dance"], "there are serve, compare"),
    ],
)
def test_what_cannot_be_tried_is_one_sentence(
    argv: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    url = [] if "--url" in argv or argv[0] in ("compare", "dance") else ["--url", "http://127.0.0.1:9"]
    assert main([*argv, *url]) == 2
    said = capsys.readouterr().err
    assert words in said
    assert said.count("\n") == 1


def test_help_is_given(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    assert main([]) == 2
    assert "compare" in capsys.readouterr().out
    for command in ("serve", "compare", "scenario", "selftest"):
        with pytest.raises(SystemExit) as ended:
            main([command, "--help"])
        assert ended.value.code == 0
        assert f"helios bench {command}" in capsys.readouterr().out
