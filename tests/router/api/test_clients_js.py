"""Hugging Face's JavaScript client, where Node is: the current one, and one that speaks TGI's own dialect."""

import json
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.running import Server

SCRIPT = Path(__file__).with_name("clients.mjs")


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
