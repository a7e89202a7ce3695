"""The contract of who may import whom: it holds, and an arrow against it is found."""

import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from tests.running import ROOT

LINT = "from importlinter.cli import lint_imports_command; lint_imports_command()"


def lint(folder: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", LINT, "--no-cache"]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=110)


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    for package in ("router", "shard", "telemetry", "loadgen"):
        only_code = shutil.ignore_patterns("__pycache__", "exits_embedded")
        shutil.copytree(ROOT / package, tmp_path / package, ignore=only_code)
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("file", "arrow", "contract"),
    [
        ("router/policy/decide.py", "import router.fleet.engine", "router/: arrows run one way BROKEN"),
        ("shard/engine/sampler.py", "import shard.exits.segments", "shard/: arrows run one way BROKEN"),
        ("loadgen/client/wire.py", "import loadgen.report.page", "loadgen/: arrows run one way BROKEN"),
        ("router/api/sse.py", "import shard.runner", "a simulated one BROKEN"),
        ("router/text/tokenizer.py", "import torch", "router/ never loads torch BROKEN"),
        ("telemetry/store.py", "import telemetry.terminal.client", "telemetry/: arrows run one way BROKEN"),
        ("router/api/ops.py", "import telemetry.terminal.wording", "no part of a server BROKEN"),
        ("shard/messages.py", "import telemetry.keys", "do not know each other BROKEN"),
        ("router/policy/decide.py", "import time", "no clock, no socket, no Redis BROKEN"),
        ("telemetry/keys.py", "import telemetry.store", "no circle of files or folders BROKEN"),
    ],
)
def test_an_arrow_against_the_contract_is_found(copy: Path, file: str, arrow: str, contract: str) -> None:
    source = copy / file
    source.write_text(f"{source.read_text()}\n{arrow}\n")
    linted = lint(copy)
    assert linted.returncode == 1
    assert contract in " ".join(linted.stdout.split())


def test_the_contract_holds(copy: Path) -> None:
    linted = lint(copy)
    assert linted.returncode == 0, linted.stdout


def test_test_modules_import_helpers_and_no_test_modules() -> None:
    """What two of them need lies in a helper beside them."""
    files = list((ROOT / "tests").rglob("*.py"))
    assert len(files) > 100
    arrows = [
        f"{path.relative_to(ROOT)}: {line}"
        for path in files
        for line in path.read_text(encoding="utf-8").splitlines()
        if re.match(r"\s*(from|import) tests(\.\w+)*\.test_", line)
    ]
    assert arrows == []


def test_arrows_in_architecture_are_the_contracts() -> None:
    page = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    contracts = settings["tool"]["importlinter"]["contracts"]
    layers = {
        contract["containers"][0].replace(".", "/"): contract["layers"]
        for contract in contracts
        if "layers" in contract
    }
    drawn = re.findall(
        r"^    (router|shard|loadgen|telemetry(?:/terminal)?) +((?:.+\n)+)", page, re.MULTILINE
    )
    assert {name: " ".join(arrows.split()).split(" > ") for name, arrows in drawn} == layers
