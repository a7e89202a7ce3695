"""/openapi.json is true: what a client makes of it alone is answered as it says."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.running import serving

# What fits the schema may still be too long for the model, or a conversation that its template refuses.
LEFT_OUT = "positive_data_acceptance"
QUICK = {
    "step_ms": 1.0,
    "token_ms": 0.0,
    "sequence_ms": 0.0,
    "context_token_ms": 0.0,
    "max_total_tokens": 256,
}


@pytest.mark.timeout(400)
def test_the_document_is_true(tiny_model: Callable[[str], Path], tmp_path: Path) -> None:
    """Some thousand calls by schemathesis: fitting and not, to every route but the one that stops service."""
    costs = tmp_path / "costs.json"
    costs.write_text(json.dumps(QUICK))
    settings = {"model_id": tiny_model("llama"), "device": "sim", "cost_model": costs}
    with serving(tmp_path, settings) as server:
        server.wait_until_ready()
        command = [
            *(sys.executable, "-m", "schemathesis.cli", "run", f"{server.url}/openapi.json"),
            *("--checks", "all", "--exclude-checks", LEFT_OUT, "--exclude-path", "/ops/drain"),
            *("--phases", "examples,coverage,fuzzing", "--max-examples", "3", "--seed", "1"),
            *("--workers", "1", "--request-timeout", "60", "--generation-database", "none", "--no-color"),
        ]
        result = subprocess.run(
            command, cwd=tmp_path, env=os.environ, capture_output=True, text=True, timeout=360
        )
    assert result.returncode == 0, result.stdout[-6000:] + result.stderr[-2000:]
