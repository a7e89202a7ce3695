"""A shard says where what it serves goes beyond what was certified, and nothing where it does not."""

from pathlib import Path

import msgspec
import pytest
import torch

from shard.messages import Criterion, Fill, Mode
from shard.models.checkpoint import digest
from shard.quality.certificate import (
    CERTIFICATE,
    Certificate,
    DepthAgreement,
    Guarantee,
    heads_digest,
    write_certificate,
)
from shard.quality.certificate_check import Served, objections
from tests.shard.driving import generate, make_runner
from tests.shard.exit_files import write_exits
from tests.shard.quality.certificates import BASIS


@pytest.fixture
def exits(tiny_model, tmp_path: Path) -> Path:
    """Certified for `per_row` with thresholds of 0.8, and for two layers of `capped`."""
    model = tiny_model("llama")
    folder = write_exits(tmp_path / "exits", model, [1, 2], "mlp", thresholds={"softmax": 0.8})
    basis = msgspec.structs.replace(BASIS, model=digest(model), heads=heads_digest(folder))
    guarantee = Guarantee("per_row", "recompute", "softmax", 0.05, 0.9, {1: 0.8, 2: 0.8}, [], basis)
    write_certificate(folder, Certificate([guarantee], [DepthAgreement(2, 0.7, 0.65, 0.9, basis)]))
    return folder


def warnings(model: Path, folder: Path, **config) -> list[str]:
    settings = {"exits": str(folder), "exit_mode": "per_row"} | config
    return make_runner(model, **settings).ready().warnings


def test_what_was_certified_is_served_without_a_word(tiny_model, exits: Path):
    model = tiny_model("llama")
    assert warnings(model, exits) == []
    assert warnings(model, exits, exit_mode="capped", num_layers=2) == []
    assert warnings(model, exits, exit_mode="full") == []
    assert warnings(model, exits, exit_mode="speculative") == []


@pytest.mark.parametrize(
    ("config", "sentence"),
    [
        ({"exit_mode": "synchronized"}, "does not cover synchronized, recompute, softmax, float32"),
        (
            {"kv_fill": "project"},
            "does not cover per_row, project, softmax, float32; it covers: per_row, rec",
        ),
        ({"exit_criterion": "margin"}, "does not cover per_row, recompute, margin, float32"),
        ({"dtype": "bfloat16"}, "does not cover per_row, recompute, softmax, bfloat16"),
        ({"exit_mode": "capped", "num_layers": 1}, "says nothing of 1 layers in float32"),
        ({"exits": None, "exit_layers": [1]}, "These exits have no certificate"),
    ],
)
def test_what_was_not_certified_is_named(tiny_model, exits: Path, config, sentence: str):
    said = warnings(tiny_model("llama"), exits, **config)
    assert len(said) == 1
    assert sentence in said[0]


def test_lower_thresholds_other_heads_and_another_model_are_named(tiny_model, exits: Path):
    model = tiny_model("llama")
    (exits / "exits.json").write_text((exits / "exits.json").read_text().replace("0.8", "0.5", 1))
    assert warnings(model, exits) == [
        "Thresholds are below the certified ones: 0.5 at layer 1 (certified: 0.8)."
    ]
    (exits / "exits.json").write_text((exits / "exits.json").read_text().replace("0.5", "0.9", 1))
    assert warnings(model, exits) == []  # higher ones are safer
    served = Served(Mode.PER_ROW, Fill.RECOMPUTE, Criterion.SOFTMAX, "float32", "other", 4, {1: 0.8, 2: 0.8})
    assert "of another model" in objections(served, exits)[0]
    with (exits / "exits.safetensors").open("ab") as file:
        file.write(b" ")
    assert "have changed since" in objections(msgspec.structs.replace(served, model=digest(model)), exits)[0]


def test_a_damaged_certificate_does_not_keep_a_shard_from_serving(tiny_model, exits: Path):
    (exits / CERTIFICATE).write_text("{")
    said = warnings(tiny_model("llama"), exits)
    assert len(said) == 1
    assert "is not a certificate" in said[0]


def test_a_threshold_of_one_is_out_of_reach_and_costs_nothing(tiny_model, tmp_path: Path):
    """A probe may be sure to the last bit."""
    model = tiny_model("llama")
    loud = write_exits(tmp_path / "exits", model, [2], "mlp", thresholds={"classifier": 1.0})
    from safetensors.torch import load_file, save_file

    tensors = load_file(loud / "exits.safetensors")
    tensors["exits.2.probe.weight"] *= 0
    tensors["exits.2.probe.bias"] = tensors["exits.2.probe.weight"][:, 0] + 1000.0
    save_file(tensors, loud / "exits.safetensors")
    runner = make_runner(
        model, exits=str(loud), exit_mode="per_row", exit_criterion="classifier", exit_fallback=False
    )
    (exit_head,) = runner.stack.exits
    assert exit_head.probe(torch.zeros(1, 64)).item() == 1.0
    exit_head.probe = pytest.fail  # type: ignore[assignment]
    made = generate(runner, [[5, 6, 7]], 6)[0]
    assert {token.exit_layer for token in made.tokens} == {4}
