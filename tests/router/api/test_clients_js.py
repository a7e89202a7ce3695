"""Hugging Face's JavaScript client, where Node is: the current one, and one that speaks TGI's own dialect."""

import json
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.running import Server

PACKAGES = {"current": "@huggingface/inference@4.13.30", "former": "@huggingface/inference@2.8.1"}
SCRIPT = Path(__file__).with_name("clients.mjs")


@pytest.fixture(scope="module")
def js_clients(pytestconfig: pytest.Config) -> Path:
    """A folder with both packages, installed into pytest's cache once."""
    npm = shutil.which("npm")
    if npm is None or shutil.which("node") is None:
        pytest.skip("node and npm are not installed")
    folder = pytestconfig.cache.mkdir("js-clients")
    installed = [f"{name}@npm:{package}" for name, package in PACKAGES.items()]
    if not all((folder / "node_modules" / name).is_dir() for name in PACKAGES):
        command = [npm, "install", "--prefix", str(folder), "--no-audit", "--no-fund", *installed]
        ran = subprocess.run(command, capture_output=True, text=True, timeout=100)
        if ran.returncode != 0:
            pytest.skip(f"npm cannot install {installed}: {ran.stderr.strip()[-300:]}")
    return folder / "node_modules"


@pytest.fixture(scope="module")
def server(serve: Callable[..., Server], tiny_model: Callable[[str], Path]) -> Iterator[Server]:
    with serve(model_id=tiny_model("llama"), device="cpu", dtype="float32") as server:
        yield server


def run(entry: Path, server: Server, *model: str) -> Any:
    command = ["node", str(SCRIPT), server.url, entry.as_uri(), *model]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert ran.returncode == 0, ran.stderr
    return json.loads(ran.stdout.splitlines()[-1])


def check_chat(seen: Any) -> None:
    [choice] = seen["chat"]["choices"]
    assert choice["finish_reason"] == "length"
    deltas = [event["choices"][0]["delta"]["content"] for event in seen["chatEvents"]]
    assert "".join(deltas) == choice["message"]["content"]
    assert len(deltas) == 8


def test_the_current_client(js_clients: Path, server: Server) -> None:
    seen = run(js_clients / "current" / "dist" / "esm" / "index.js", server)
    check_chat(seen)
    text = "".join(event["choices"][0]["text"] for event in seen["textEvents"])
    assert text == seen["text"]["generated_text"]
    assert "HTTP error" in seen["refusal"]


def test_the_former_client(js_clients: Path, server: Server) -> None:
    seen = run(js_clients / "former" / "dist" / "index.js", server, "tgi")
    check_chat(seen)
    pieces = "".join(event["token"]["text"] for event in seen["textEvents"])
    assert pieces == seen["text"]["generated_text"] == seen["textEvents"][-1]["generated_text"]
    assert "max_new_tokens" in seen["refusal"]
