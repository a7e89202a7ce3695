"""A server that cannot start says why in one sentence, the last that it says, and shows no traceback."""

import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.running import ROOT, command, environment

Told = tuple[int, str]


def failed_start(settings: dict[str, object], **variables: str) -> Told:
    """Exit code and standard error of a server that does not start."""
    asked = {"hostname": "127.0.0.1", "port": 0, "kv_cache_bytes": "16MiB"} | settings
    ended = subprocess.run(
        command(asked), cwd=ROOT, env=environment() | variables, capture_output=True, text=True, timeout=100
    )
    return ended.returncode, ended.stderr


@pytest.fixture
def broken_library(tmp_path: Path) -> str:
    """A folder for PYTHONPATH, by which no file of weights can be opened."""
    folder = tmp_path / "broken"
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(
        "import safetensors\n"
        "def fail(*given, **named): raise TypeError('no such float')\n"
        "safetensors.safe_open = fail\n"
    )
    return str(folder)


@pytest.mark.parametrize("log_level", ["info", "debug"])
def test_a_model_that_a_library_cannot_load(
    tiny_model: Callable[[str], Path], broken_library: str, log_level: str
) -> None:
    folder = tiny_model("llama")
    settings = {"model_id": folder, "device": "cpu", "log_level": log_level}
    code, said = failed_start(settings, PYTHONPATH=broken_library)
    assert code == 1
    last = said.strip().splitlines()[-1]
    assert last.startswith(f"helios serve: Loading {folder} on cpu failed (")
    assert "no such float" in last
    assert ("Traceback" in said) == (log_level == "debug")
    assert said.count("helios serve: ") == 1  # the sentence, once


def test_a_cost_model_that_is_none(tiny_model: Callable[[str], Path], tmp_path: Path) -> None:
    (tmp_path / "costs.json").write_text("[]")
    costs = tmp_path / "costs.json"
    code, said = failed_start({"model_id": tiny_model("llama"), "device": "sim", "cost_model": costs})
    assert code == 1
    assert said.strip().splitlines()[-1].startswith(f"helios serve: The cost model {costs} cannot be read")
    assert "Traceback" not in said


def test_a_tokenizer_that_is_none(tiny_model: Callable[[str], Path], tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_model("llama"), tmp_path / "model")
    (folder / "tokenizer.json").write_bytes(os.urandom(100))
    code, said = failed_start({"model_id": folder, "device": "sim"})
    assert code == 1
    assert said.strip().startswith(f"helios serve: {folder / 'tokenizer.json'} cannot be read (")
    assert "Traceback" not in said


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"model_id": "embedded", "cache_dir": "/proc/none"}, "helios: Preparing embedded in /proc/none"),
        (
            {"shard_addresses": "tcp://127.0.0.1:9", "shard_secret_file": "/nowhere"},
            "helios serve: shard_secret_file /nowhere cannot be read: No such",
        ),
    ],
    ids=["cache", "secret"],
)
def test_files_that_cannot_be_had(
    tiny_model: Callable[[str], Path], settings: dict[str, object], sentence: str
) -> None:
    usual = {"model_id": tiny_model("llama"), "device": "sim"}
    code, said = failed_start(usual | settings)
    assert code == 1
    assert said.strip().splitlines()[-1].startswith(sentence)
    assert "Traceback" not in said


def test_standard_streams_may_be_closed(tiny_model: Callable[[str], Path], tmp_path: Path) -> None:
    """The first files opened then would take their places."""
    log = tmp_path / "log"
    shell = " ".join(command({"model_id": tiny_model("llama"), "device": "sim", "port": 0}))
    with log.open("w") as stderr:
        server = subprocess.Popen(["/bin/sh", "-c", f"exec {shell} <&- >&-"], cwd=ROOT, stderr=stderr)
    try:
        for _ in range(600):
            if "is ready" in log.read_text() or server.poll() is not None:
                break
            try:
                server.wait(0.1)
            except subprocess.TimeoutExpired:
                continue
        server.terminate()
        assert server.wait(30) == 0
    finally:
        server.kill()
    assert "is ready" in log.read_text()
    assert "did not start" not in log.read_text()  # the embedded Redis
