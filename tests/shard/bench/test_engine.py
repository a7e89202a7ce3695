"""`helios bench engine` measures shapes without fetching anything, and says what memory alone would take."""

import json
from pathlib import Path

import pytest

from shard.bench.engine import main
from shard.bench.limit import limit_of
from shard.ops.plain import PlainOps
from tests.shard.driving import DEVICE, make_runner


@pytest.fixture
def plain_on_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    if DEVICE == "cpu":
        monkeypatch.setattr("shard.model.choose_ops", lambda device, precision, size, *_: PlainOps(size))


def test_a_shape_is_measured_without_a_tokenizer(plain_on_a_cpu, tmp_path: Path, monkeypatch, capsys):
    monkeypatch.setattr("shard.fetch.resolve.pull", lambda _: pytest.fail("fetched the embedded model"))
    given = {
        "model-id": "random:opt-1.3b:16",
        "device": DEVICE,
        "batch-sizes": "1,2",
        "contexts": "16",
        "steps": "2",
        "num-layers": "2",
        "cache-dir": str(tmp_path),
    }
    assert main([f"--{name}={value}" for name, value in given.items()]) == 0
    made = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (made["cut"], made["failed"]) == ([], {})
    assert [point["batch_size"] for point in made["points"]] == [1, 2]
    for point in made["points"]:
        assert point["limit_ms"] > 0
        assert point["of_limit"] == pytest.approx(point["limit_ms"] / point["step_ms"], abs=2e-3)
    assert main([f"--{name}={value}" for name, value in (given | {"seconds": "0"}).items()]) == 0
    made = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert made["points"] == [] and len(made["cut"]) == 2


def test_a_step_reads_every_weight_and_every_key(plain_on_a_cpu, tiny_model):
    runner = make_runner(tiny_model("mistral"), num_layers=2)
    limit = limit_of(runner, batch_size=3, context=100, bytes_per_ms=1000.0)
    hidden, fused, mlp, vocab = 64, (4 + 2 * 2) * 32, 96, runner.decoder.shape.vocab_size
    layer = hidden * fused + 4 * 32 * hidden + 3 * hidden * mlp
    assert limit.weight_bytes == 4 * (2 * layer + hidden * vocab)
    assert limit.kv_bytes == 3 * 100 * 2 * (2 * 2 * 32) * 4
    assert limit.step_ms == (limit.weight_bytes + limit.kv_bytes) / 1000.0
