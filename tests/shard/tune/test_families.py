"""From an ordinary model to one that is served with exits and a certificate: tune, calibrate, serve."""

import json
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from shard.quality.certificate import read_certificate
from shard.tune import __main__ as tune
from shard.tune import calibrate
from tests.running import Server
from tests.shard.driving import generate, make_runner
from tests.tiny_models import SHAPES

PROMPTS = [
    f"{ask} the {size} {animal}."
    for ask in ("Tell me of", "Once there was", "What does it cost to feed")
    for size in ("small", "quick", "lazy", "brown")
    for animal in ("fox", "dog", "world", "model", "day")
]
ANSWERED = [[5, 6, 7], [40, 41, 42, 43], [9, 8, 7]]
ON_THE_CPU = ["--dtype", "float32", "--device", "cpu", "--num-threads", "1", "--max-new-tokens", "8"]


@pytest.fixture(scope="module")
def prompts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("prompts") / "few.txt"
    path.write_text("\n".join(PROMPTS))
    return path


def tuned(model: Path, folder: Path, prompts: Path) -> Path:
    flags = ["--exit-layers", "1,3", "--head", "mlp", "--head-rank", "16", "--steps", "10"]
    flags += ["--batch-tokens", "96", "--vocabulary-steps", "4", "--num-answers", "32"]
    exits = folder / "exits"
    places = ["--out", str(exits), "--work", str(folder / "work"), "--prompts", str(prompts)]
    assert tune.main([str(model), *places, *flags, *ON_THE_CPU]) == 0
    return exits


def calibrated(model: Path, exits: Path, prompts: Path, *flags: str) -> None:
    """A risk that even heads of a few steps stay below: that they are good is not the point here."""
    flags = ("--num-sequences", "40", "--num-survey", "20", "--risk", "0.6", *flags)
    places = ["--exits", str(exits), "--prompts", str(prompts), "--cache-dir", str(exits.parent / "cache")]
    assert calibrate.main([str(model), *places, *flags, *ON_THE_CPU, "--kv-cache-bytes", "16777216"]) == 0


@pytest.mark.parametrize("shape", SHAPES)
def test_a_model_of_every_family_is_tuned_calibrated_and_served(tiny_model, tmp_path, prompts, shape):
    model = tiny_model(shape)
    exits = tuned(model, tmp_path, prompts)
    calibrated(model, exits, prompts)
    calibrated(model, exits, prompts, "--mode", "capped")
    certificate = read_certificate(exits)
    assert certificate is not None
    (guarantee,) = certificate.guarantees
    assert min(guarantee.thresholds.values()) < 1
    assert [known.depth for known in certificate.depths] == [1, 3]
    served = make_runner(model, exits=str(exits), exit_mode="per_row", exit_fallback=False)
    assert served.ready().warnings == []
    layers = {token.exit_layer for made in generate(served, ANSWERED, 20) for token in made.tokens}
    assert layers <= {1, 3, 4}
    assert layers - {4}
    capped = make_runner(model, exits=str(exits), exit_mode="capped", num_layers=3)
    assert capped.ready().warnings == []
    assert {token.exit_layer for made in generate(capped, ANSWERED, 8) for token in made.tokens} == {3}


def test_a_server_says_what_it_serves_beyond_the_certificate(tiny_model, tmp_path, prompts, serve):
    model = tiny_model("llama")
    exits = tuned(model, tmp_path, prompts)
    calibrated(model, exits, prompts)
    how = {"exits": exits, "exit_mode": "synchronized", "no_exit_fallback": True}
    with serve(model_id=model, dtype="float32", **how) as server:
        request = {"inputs": "Tell me of", "parameters": {"max_new_tokens": 20, "details": True}}
        details = ask(server, "/generate", request)["details"]
        assert {token["exit_layer"] for token in details["tokens"]} & {1, 3}
        (warning,) = ask(server, "/info", None)["warnings"]
        assert "does not cover synchronized, recompute, softmax, float32" in warning
        assert ask(server, "/ops/state", None)["shards"][0]["warnings"] == [warning]
        assert warning in server.log


def ask(server: Server, path: str, body: dict[str, Any] | None) -> dict[str, Any]:
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(server.url + path, data, {"content-type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as answer:
        return json.loads(answer.read())
