"""A server with simulated shards and two candidates, and calls to it."""

import json
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.running import Server

COSTS = {"step_ms": 2.0, "token_ms": 0.0, "sequence_ms": 0.0, "context_token_ms": 0.0}
PROMPT = "Tell the secret recipe"
LABEL = "label-of-a-client"
REPOSITORY = """
[floor]
agreement = 0.4
[loop]
enabled = false
[[candidate]]
name = "chat"
model = "{model}"
depths = [10, 20]
cost_model = "{folder}/fast.json"
[[candidate]]
name = "code"
model = "{other}"
cost_model = "{folder}/slow.json"
[[candidate]]
name = "broken"
model = "{model}"
cost_model = "{folder}/broken.json"
"""


def simulated(
    serve: Callable[..., Server],
    tiny_model: Callable[[str], Path],
    folder: Path,
    key: str = "",
    **settings: object,
) -> Server:
    """Serves `chat`; `code` takes half a second to load, and `broken` cannot be loaded."""
    (folder / "fast.json").write_text(json.dumps(COSTS))
    (folder / "slow.json").write_text(json.dumps(COSTS | {"load_ms": 500}))
    (folder / "broken.json").write_text(json.dumps(COSTS | {"fails_on_load": "Its weights are gone."}))
    file = folder / "repository.toml"
    file.write_text(REPOSITORY.format(model=tiny_model("llama"), other=tiny_model("qwen3"), folder=folder))
    server = serve(repository=file, device="sim", **settings)
    while any(shard["state"] == "loading" for shard in get(server, "/ops/state", key)["shards"]):
        time.sleep(0.01)
    return server


def generate(server: Server, num_tokens: int, label: str = LABEL) -> str:
    """One answer; returns its text."""
    parameters = {"max_new_tokens": num_tokens, "ignore_eos": True}
    body = json.dumps({"inputs": PROMPT, "parameters": parameters}).encode()
    headers = {"content-type": "application/json", "x-request-id": label}
    call = urllib.request.Request(f"{server.url}/generate", body, headers)
    with urllib.request.urlopen(call, timeout=30) as answer:
        return str(json.load(answer)["generated_text"])


def get(server: Server, path: str, key: str = "") -> Any:
    call = urllib.request.Request(server.url + path, headers={"authorization": f"Bearer {key}"})
    with urllib.request.urlopen(call, timeout=10) as answer:
        return json.load(answer)
