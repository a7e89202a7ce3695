"""Every sample of README.md, as it stands there but for the server's address, does what a reader expects."""

import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.running import ROOT, Server, environment

README = (ROOT / "README.md").read_text(encoding="utf-8")
ADDRESS = "http://localhost:3000"
PYTHON = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
JAVASCRIPT = re.findall(r"```js\n(.*?)```", README, re.DOTALL)
SHELL = [
    line.replace("\\\n", " ") for line in re.findall(r"^    (curl (?:.*\\\n)*.*)$", README, re.MULTILINE)
]


@pytest.fixture(scope="module")
def server(serve: Callable[..., Server], tiny_model: Callable[[str], Path]) -> Iterator[Server]:
    names = "smollm2-135m-instruct"
    with serve(
        model_id=tiny_model("llama"), device="cpu", dtype="float32", served_model_name=names
    ) as server:
        yield server


def run(command: list[str], folder: Path) -> str:
    ran = subprocess.run(
        command,
        cwd=folder,
        env=environment() | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=110,
    )
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


def test_the_samples_are_found() -> None:
    assert (len(PYTHON), len(JAVASCRIPT), len(SHELL)) == (3, 1, 3)


@pytest.mark.parametrize("sample", [sample for sample in PYTHON if ADDRESS in sample])
def test_a_client_in_python(sample: str, server: Server, tmp_path: Path) -> None:
    assert run([sys.executable, "-c", sample.replace(ADDRESS, server.url)], tmp_path).strip()


@pytest.mark.parametrize("sample", [sample for sample in PYTHON if ADDRESS not in sample])
def test_without_a_server(sample: str) -> None:
    output = run([sys.executable, "-c", sample], ROOT)
    exits = re.findall(r"\[([\d, ]+)\]\n", output)
    assert len(exits) == 2
    assert {int(layer) for line in exits for layer in line.split(",")} <= {15, 20, 25, 30}


@pytest.mark.parametrize("sample", JAVASCRIPT)
def test_a_client_in_javascript(sample: str, server: Server, js_clients: Path, tmp_path: Path) -> None:
    module = (js_clients / "current" / "dist" / "esm" / "index.js").as_uri()
    script = tmp_path / "sample.mjs"
    script.write_text(sample.replace(ADDRESS, server.url).replace("@huggingface/inference", module))
    assert run(["node", str(script)], tmp_path).strip()


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
@pytest.mark.parametrize("sample", SHELL)
def test_curl(sample: str, server: Server, tmp_path: Path) -> None:
    output = run(
        ["sh", "-c", sample.replace("curl", "curl --silent --fail").replace(ADDRESS, server.url)], tmp_path
    )
    assert '"generated_text"' in output or '"content"' in output
