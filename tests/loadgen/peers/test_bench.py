"""The command as a person runs it; a script stands for the Python of a peer's venv."""

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from loadgen.__main__ import main
from tests.loadgen import fake_server
from tests.running import ROOT

LOAD = {"rounds": 1, "seconds": 0.2, "streams": 2, "output-tokens": 4, "ttft-tokens": 16}
QUICK = [f"--{name}={value}" for name, value in LOAD.items()]


def python_of(folder: Path, serves: str) -> str:
    """A program that has xllamacpp 7, as far as asked, and runs `serves` instead of llama.cpp's server."""
    path = folder / "python"
    asks = 'case "$*" in *importlib.metadata*) echo xllamacpp 7; exit;; esac'
    path.write_text(f"#!/bin/sh\n{asks}\n{serves}\n")
    path.chmod(0o755)
    return str(path)


@pytest.fixture
def model(tiny_model, tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    shutil.copytree(tiny_model("llama"), folder)
    (folder / "model.gguf").touch()
    return folder


def test_a_peer_and_helios_are_compared_from_start_to_end(model: Path, tmp_path: Path, capsys):
    python = python_of(tmp_path, f"exec {sys.executable} {fake_server.__file__} $4 '{{}}'")
    argv = ["peers", "--llama-cpp", python, "--model", str(model), "--cache-dir", str(tmp_path), *QUICK]
    flags = "--device sim"
    assert main([*argv, "--helios-flags", flags, "--quiet", "--out", str(tmp_path / "out")]) == 0
    line = json.loads(capsys.readouterr().out.strip().splitlines()[-1])
    found = line["peers"]["llama.cpp"]
    assert found["version"] == "xllamacpp 7"
    assert found["loads"]["2 streams"]["requests/s"]["b"] > 0
    assert flags in found["commands"]["Helios"]
    assert (found["failures"], line["failed"]) == (0, {})
    written = json.loads((tmp_path / "out" / "peers.json").read_text())
    assert len(written["rounds"]["llama.cpp"]["2 streams"]) == 1
    assert line["machine"]["cpu"]
    assert line["machine"]["num_cores"] >= 1


def test_a_peer_that_does_not_start_is_reported_with_its_log(model: Path, tmp_path: Path, capsys):
    python = python_of(tmp_path, "echo this CPU is too old; exit 3")
    argv = ["peers", "--llama-cpp", python, "--model", str(model), "--cache-dir", str(tmp_path), *QUICK]
    assert main([*argv, "--quiet"]) == 2
    line = json.loads(capsys.readouterr().out.strip().splitlines()[-1])
    log = tmp_path / "peers" / "logs" / "llama.cpp" / "llama.cpp.log"
    assert line["failed"] == {"llama.cpp": f"llama.cpp ended: this CPU is too old (log: {log})"}
    assert log.read_text() == "this CPU is too old\n"


def test_without_a_peer_one_sentence_says_how_to_get_one(tmp_path: Path, capsys):
    assert main(["peers", "--cache-dir", str(tmp_path), *QUICK]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "--llama-cpp PYTHON" in said
    assert "--install llama-cpp" in said


def test_a_terminated_comparison_leaves_no_server_behind(model: Path, tmp_path: Path):
    python = python_of(tmp_path, f"exec {sys.executable} {fake_server.__file__} $4 '{{}}'")
    argv = ["peers", "--llama-cpp", python, "--model", str(model), "--cache-dir", str(tmp_path), *QUICK]
    command = [sys.executable, "-m", "loadgen", *argv, "--seconds", "60", "--helios-flags", "--device sim"]
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True) as process:
        try:
            servers = _two_servers(psutil.Process(process.pid))
            process.terminate()
            _, said = process.communicate(timeout=60)
        finally:
            process.kill()
    assert process.returncode == 2
    assert said.splitlines()[-1] == "helios bench peers: terminated."
    _, alive = psutil.wait_procs(servers, timeout=10)
    assert not alive


def _two_servers(bench: psutil.Process) -> list[psutil.Process]:
    """Both servers, as soon as the second one has been started. Other programs are run one at a time."""
    for _ in range(600):
        found = bench.children()
        if len(found) == 2:
            return found
        time.sleep(0.1)
    raise AssertionError("two servers were not started in time")
