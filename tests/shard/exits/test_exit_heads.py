"""What does not fit is refused when it is loaded, in one sentence that names the layer and the bound."""

import itertools
import json
from pathlib import Path

import pytest

from shard.engine.sequence import Sequence
from shard.exits.exit_heads import ExitError
from shard.exits.replay import LongPrompts, Replay, ReplayFile, read_replay
from shard.messages import NewSequence, Step, Work
from shard.models.checkpoint import CheckpointError
from tests.shard.driving import generate, make_runner
from tests.shard.exit_files import change_tensors, quantise, write_exits


def change_exits(folder: Path, **fields) -> None:
    path = folder / "exits.json"
    file = json.loads(path.read_text())
    file["exits"][-1] |= fields
    path.write_text(json.dumps(file))


@pytest.mark.parametrize(
    ("fields", "complaint"),
    [
        ({"layer": 4}, "exit layer 4 is out of range: between 1 and 3"),
        ({"layer": 0}, r"exit layers must rise, not \[1, 0\]"),
        ({"threshold": 1.5}, r"threshold 1.5 of exit layer 2 is not in \[0, 1\]"),
        ({"thresholds": {"margin": -0.1}}, r"threshold -0.1 of exit layer 2 is not in \[0, 1\]"),
        ({"head": "transformer"}, "exits.json: .*transformer"),
        ({"head": "block"}, r"exits\.2\.block\..*missing"),
        ({"colour": 1}, "exits.json: .*colour"),
        ({"rank": 0}, r"rank 0 of exit layer 2 is not in 1 \.\. 64"),
        ({"rank": 8, "rerank": 0}, r"rerank 0 of exit layer 2 needs a rank and is at least 1"),
        ({"rerank": 4}, r"rerank 4 of exit layer 2 needs a rank"),
        ({"rank": 8}, r"'exits\.2\.low_rank\.weight' is missing"),
        ({"probe_floor": 2}, r"probe_floor 2.* of exit layer 2 is not in \[0, 1\]"),
    ],
)
def test_exit_files_that_do_not_fit_are_refused(tiny_model, tmp_path: Path, fields, complaint):
    folder = write_exits(tmp_path / "exits", tiny_model("llama"), [1, 2], "norm")
    change_exits(folder, **fields)
    with pytest.raises((ExitError, CheckpointError), match=complaint):
        make_runner(tiny_model("llama"), exit_mode="per_row", exits=str(folder))


def test_exits_of_another_model_are_refused(tiny_model, tmp_path: Path):
    folder = write_exits(tmp_path / "exits", tiny_model("llama"), [1], "norm")
    file = json.loads((folder / "exits.json").read_text())
    (folder / "exits.json").write_text(json.dumps(file | {"num_layers": 12}))
    with pytest.raises(ExitError, match="made for a model of 12 layers, not 4"):
        make_runner(tiny_model("llama"), exit_mode="per_row", exits=str(folder))


def test_heads_of_the_wrong_shape_are_refused(tiny_model, tmp_path: Path):
    from safetensors.torch import load_file, save_file

    folder = write_exits(tmp_path / "exits", tiny_model("llama"), [2], "mlp")
    tensors = load_file(folder / "exits.safetensors")
    tensors["exits.2.mlp.up.weight"] = tensors["exits.2.mlp.up.weight"][:, :10].contiguous()
    save_file(tensors, folder / "exits.safetensors")
    with pytest.raises(CheckpointError, match=r"exits\.2\.mlp\.up.*do not fit hidden size 64"):
        make_runner(tiny_model("llama"), exit_mode="per_row", exits=str(folder))


def test_a_missing_folder_and_missing_heads_are_named(tiny_model, tmp_path: Path):
    with pytest.raises(ExitError, match=r"exits\.json does not exist"):
        make_runner(tiny_model("llama"), exit_mode="per_row", exits=str(tmp_path / "nowhere"))
    folder = write_exits(tmp_path / "exits", tiny_model("llama"), [2], "mlp")
    (folder / "exits.safetensors").unlink()
    with pytest.raises(ExitError, match=r"mlp head, but there is no exits\.safetensors"):
        make_runner(tiny_model("llama"), exit_mode="per_row", exits=str(folder))


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (lambda t: t.pop("vocabulary.weight"), r"'vocabulary\.weight' is missing"),
        (
            lambda t: t.update({"vocabulary.weight": t["vocabulary.weight"][:-1]}),
            r"has shape \(\d+, 8\), not",
        ),
        (lambda t: t.update({"exits.1.low_rank.weight": t["exits.1.low_rank.weight"].t()}), r"not \(8, 64\)"),
        (lambda t: t.pop("exits.2.probe.weight"), "exit layer 2 has a probe_floor, but no probe"),
        (lambda t: (quantise(t), t.pop("vocabulary.weight_scale")), r"'vocabulary\.weight_scale' is missing"),
        (lambda t: t.update({"vocabulary.weight": t["vocabulary.weight"][0].char()}), "has shape"),
    ],
)
def test_low_rank_heads_that_do_not_fit_are_refused(tiny_model, tmp_path: Path, change, complaint):
    folder = write_exits(tmp_path / "exits", tiny_model("llama"), [1, 2], "norm", rank=8, probe_floor=0.5)
    change_tensors(folder / "exits.safetensors", change)
    with pytest.raises((ExitError, CheckpointError), match=complaint):
        make_runner(tiny_model("llama"), exit_mode="per_row", exits=str(folder))


def test_exits_that_share_a_vocabulary_have_one_rank(tiny_model, tmp_path: Path):
    folder = write_exits(tmp_path / "exits", tiny_model("llama"), [1, 2], "norm", rank=8)
    change_tensors(
        folder / "exits.safetensors",
        lambda t: t.update({"exits.2.low_rank.weight": t["exits.2.low_rank.weight"][:4]}),
    )
    change_exits(folder, rank=4)
    with pytest.raises(ExitError, match="have one rank, not 8 and 4"):
        make_runner(tiny_model("llama"), exit_mode="per_row", exits=str(folder))


@pytest.mark.parametrize(
    ("name", "complaint"),
    [
        ("gone.safetensors", r"gone\.safetensors does not exist"),
        ("/etc/v.safetensors", "no relative path"),
        ("exits.json", r"no relative path of a \.safetensors file"),
        ("probes.safetensors", r"'vocabulary\.weight' is missing"),
    ],
)
def test_a_vocabulary_that_is_not_there_is_named(tiny_model, tmp_path: Path, name, complaint):
    folder = write_exits(tmp_path / "exits", tiny_model("llama"), [1, 2], "norm", rank=8)
    other = write_exits(tmp_path / "other", tiny_model("llama"), [1, 2], "norm")
    (other / "exits.safetensors").rename(folder / "probes.safetensors")
    file = json.loads((folder / "exits.json").read_text())
    (folder / "exits.json").write_text(json.dumps(file | {"vocabulary": name}))
    with pytest.raises((ExitError, CheckpointError), match=complaint):
        make_runner(tiny_model("llama"), exit_mode="per_row", exits=str(folder))


def test_a_low_rank_head_needs_weights(tiny_model, tmp_path: Path):
    folder = write_exits(tmp_path / "exits", tiny_model("llama"), [2], "norm", rank=8)
    (folder / "exits.safetensors").unlink()
    with pytest.raises(ExitError, match=r"low-rank head, but there is no exits\.safetensors"):
        make_runner(tiny_model("llama"), exit_mode="per_row", exits=str(folder))


def test_a_classifier_needs_probes(tiny_model):
    with pytest.raises(ExitError, match="exit layer 2 has no probe"):
        make_runner(tiny_model("llama"), exit_mode="per_row", exit_layers=[2], exit_criterion="classifier")


def test_a_mode_without_exits_is_refused(tiny_model):
    with pytest.raises(ExitError, match="no exit to use"):
        make_runner(tiny_model("llama"), exit_mode="per_row")


@pytest.mark.parametrize(
    ("shares", "autocorrelation", "complaint"),
    [
        ({5: 0.5}, 0.0, "exit layer 5 is not among"),
        ({1: 0.7, 2: 0.5}, 0.0, "sum to at most 1"),
        ({1: -0.1}, 0.0, "at least 0"),
        ({1: 0.5}, 1.0, "autocorrelation"),
    ],
)
def test_distributions_that_are_none_are_refused(shares, autocorrelation, complaint):
    with pytest.raises(ExitError, match=complaint):
        Replay(ReplayFile(shares, autocorrelation), [1, 2], 4)


def test_a_replay_file_that_cannot_be_read_is_named(tmp_path: Path):
    with pytest.raises(ExitError, match="cannot read"):
        read_replay(tmp_path / "none.json")
    (tmp_path / "bad.json").write_text('{"shares": {"1": "many"}}')
    with pytest.raises(ExitError, match=r"bad\.json"):
        read_replay(tmp_path / "bad.json")


@pytest.mark.parametrize("autocorrelation", [0.0, 0.6])
@pytest.mark.parametrize("mode", ["per_row", "synchronized"])
def test_replay_leaves_where_the_distribution_says(tiny_model, tmp_path: Path, mode, autocorrelation):
    path = tmp_path / "replay.json"
    path.write_text(json.dumps({"shares": {"1": 0.6, "3": 0.2}, "autocorrelation": autocorrelation}))
    runner = make_runner(
        tiny_model("llama"), exit_mode=mode, exit_layers=[1, 3], replay_exits=str(path), exit_fallback=False
    )
    prompts = [[5 + i] for i in range(6)] if mode == "per_row" else [[5]]
    layers = [t.exit_layer for g in generate(runner, prompts, 200) for t in g.tokens[1:]]
    assert layers.count(1) / len(layers) == pytest.approx(0.6, abs=0.16 if mode != "per_row" else 0.08)
    assert layers.count(4) / len(layers) == pytest.approx(0.2, abs=0.14 if mode != "per_row" else 0.07)
    repeats = sum(a == b for a, b in itertools.pairwise(layers)) / len(layers)
    assert (repeats > 0.6) == (autocorrelation > 0)


def test_long_prompts_leave_by_shares_of_their_own():
    file = ReplayFile({1: 0.9}, long_prompts=[LongPrompts(8, {1: 0.2, 2: 0.7}), LongPrompts(16, {})])
    replay = Replay(file, [1, 2], 4)
    for length, share_of_first in ((7, 0.9), (8, 0.2), (15, 0.2), (16, 0.0)):
        sequence = Sequence(NewSequence(3, 0, [5] * length, length, 500))
        layers = [replay.layer(sequence, position) for position in range(length, length + 500)]
        assert layers.count(1) / 500 == pytest.approx(share_of_first, abs=0.07)


def test_capped_a_drawn_layer_that_is_not_loaded_is_a_breach(tiny_model, tmp_path: Path):
    path = tmp_path / "replay.json"
    path.write_text(json.dumps({"shares": {"1": 0.3, "2": 0.3, "3": 0.2}}))
    settings = {"exit_mode": "capped", "num_layers": 2, "replay_exits": str(path)}
    runner = make_runner(tiny_model("llama"), **settings)
    new = NewSequence(0, 0, [5], 1, 200, ignore_eos=True)
    steps = [runner.run(Step(i, [Work(0, 0, 1)], [new] if i == 0 else [])) for i in range(200)]
    tokens = [token for step in steps for token in step.outputs[0].tokens]
    assert {token.exit_layer for token in tokens} == {2}
    breaches = sum(step.exits.breaches if step.exits else 0 for step in steps)
    assert breaches == len([token for token in tokens if token.confidence < 0.9])
    assert breaches / 200 == pytest.approx(0.4, abs=0.11)
