"""Draft heads learn from a model's own text, go on where they were stopped, and draft in the engine."""

import json
import random
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from shard.drafts.head_file import read_description
from shard.tune import drafter
from shard.tune.__main__ import main
from shard.tune.training import Trainer
from tests.shard.driving import generate, make_runner
from tests.shard.trained_model import sentence, text_of
from tests.tiny_models import write_tiny_model

PROMPTS = [
    f"Tell me of the {word} and the {other}." for word in ("dog", "fox", "day") for other in "abcdefgh"
]


@pytest.fixture(scope="module")
def prompts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("prompts") / "few.txt"
    path.write_text("\n".join(PROMPTS))
    return path


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("drafter") / "model", "llama")


def tune(model: Path, out: Path, prompts: Path, *flags: str) -> int:
    arguments = [str(model), "--drafter", "--out", str(out), "--work", str(model.parent / "work")]
    arguments += ["--prompts", str(prompts), "--num-answers", "48", "--max-new-tokens", "24"]
    arguments += ["--dtype", "float32", "--device", "cpu", "--num-threads", "1", "--batch-tokens", "192"]
    return main([*arguments, *flags])


def accepted(out: Path) -> dict[str, dict]:
    return json.loads((out / "drafter.json").read_text())["acceptance"]


def test_training_raises_acceptance_and_what_is_made_drafts_in_the_engine(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    draw, prompts, model = random.Random(2), tmp_path / "sentences.txt", tmp_path / "model"
    model.symlink_to(trained)
    asked = [sentence(draw)[0][:8] for _ in range(120)]
    prompts.write_text("\n".join(map(text_of, asked)))
    few, many = tmp_path / "few", tmp_path / "many"
    assert tune(model, few, prompts, "--steps", "1", "--rate", "1e-6") == 0
    before = capsys.readouterr().err
    assert tune(model, many, prompts, "--steps", "80", "--rate", "0.01") == 0
    after = capsys.readouterr().err
    assert "first" in after and "third" in after
    losses = [float(said.rpartition("token 1: loss ")[2].split(",")[0]) for said in (before, after)]
    assert losses[1] < 0.8 * losses[0]
    for text, found in accepted(many).items():
        assert found["by_token"][0] > accepted(few)[text]["by_token"][0] + 0.1
        assert found["accepted"] > accepted(few)[text]["accepted"]
    described = read_description(many)
    assert (described.depths, described.last, described.hidden_size) == ([1, 2, 3], 4, 64)
    runner = make_runner(
        model,
        exit_mode="speculative",
        drafters=["head"],
        draft_head=str(many),
        drafts_always=True,
        max_total_tokens=64,
    )
    made = generate(runner, asked[:8], 24)
    assert [one.ids for one in made] == [one.ids for one in generate(make_runner(model), asked[:8], 24)]


def test_what_was_interrupted_goes_on_to_the_same_head(
    model: Path, tmp_path: Path, prompts: Path, monkeypatch: pytest.MonkeyPatch
):
    assert tune(model, tmp_path / "whole", prompts, "--steps", "8") == 0
    monkeypatch.setattr(drafter, "SAVE_STEPS", 3)
    save = Trainer.save

    def save_and_stop(trainer: Trainer, path: Path, notes: object) -> None:
        save(trainer, path, notes)
        if trainer.step == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(Trainer, "save", save_and_stop)
    assert tune(model, tmp_path / "halves", prompts, "--steps", "8") == 130
    assert not (tmp_path / "halves" / "drafter.safetensors").exists()
    assert tune(model, tmp_path / "halves", prompts, "--steps", "8", "--resume") == 0
    whole, halves = (tmp_path / name / "drafter.safetensors" for name in ("whole", "halves"))
    assert whole.read_bytes() == halves.read_bytes()
    assert [path.name for path in (tmp_path / "halves").glob("*.training")] == []


def test_a_head_learns_on(model: Path, tmp_path: Path, prompts: Path, capsys: pytest.CaptureFixture[str]):
    assert tune(model, tmp_path / "first", prompts, "--steps", "3") == 0
    on = ["--init", str(tmp_path / "first"), "--rate", "1e-9", "--steps", "1"]
    assert tune(model, tmp_path / "second", prompts, *on) == 0
    first, second = (load_file(tmp_path / name / "drafter.safetensors") for name in ("first", "second"))
    assert all(torch.allclose(first[name].float(), second[name].float(), atol=1.0) for name in first)
    assert torch.equal(first["fuse.weight"], second["fuse.weight"])
    assert tune(model, tmp_path / "third", prompts, *on, "--exit-layers", "1,2") == 1
    assert "it reads behind [1, 2, 3], and the LM head decides on all tokens" in capsys.readouterr().err


def test_time_bounds_it(model: Path, tmp_path: Path, prompts: Path):
    assert tune(model, tmp_path / "out", prompts, "--steps", "100000", "--seconds", "1") == 0
    result = json.loads((tmp_path / "out" / "drafter.json").read_text())
    assert 1 <= result["num_steps"] < 100000
    assert result["seconds"] >= 1


def test_it_proposes_by_the_vocabulary_of_exits(
    model: Path, tmp_path: Path, prompts: Path, capsys: pytest.CaptureFixture[str]
):
    exits, flags = tmp_path / "exits", ["--exit-layers", "1,3", "--head-rank", "16"]
    arguments = [str(model), "--out", str(exits), "--work", str(model.parent / "work"), "--steps", "4"]
    arguments += ["--prompts", str(prompts), "--num-answers", "48", "--max-new-tokens", "24"]
    arguments += ["--dtype", "float32", "--device", "cpu", "--num-threads", "1", "--vocabulary-steps", "4"]
    assert main([*arguments, *flags]) == 0
    out = exits / "drafter"
    told = [*flags, "--vocabulary", str(exits / "vocabulary.safetensors"), "--steps", "4"]
    assert tune(model, out, prompts, *told) == 1
    assert "--head-rerank is needed as well" in capsys.readouterr().err
    assert tune(model, out, prompts, *flags, "--head-rerank", "8") == 1
    assert "name the --vocabulary of exits tuned before" in capsys.readouterr().err
    assert tune(model, out, prompts, *told, "--head-rerank", "8") == 0
    assert read_description(out).vocabulary == "../vocabulary.safetensors"
    runner = make_runner(model, exit_mode="speculative", drafters=["head"], draft_head=str(out))
    assert runner.model.draft_head is not None


@pytest.mark.parametrize("layers", ["4", "2,1", "0,1"])
def test_depths_that_are_none_are_refused(
    model: Path, tmp_path: Path, prompts: Path, layers: str, capsys: pytest.CaptureFixture[str]
):
    assert tune(model, tmp_path / "out", prompts, "--exit-layers", layers) == 1
    assert capsys.readouterr().err.strip().startswith("helios tune: Exit layer")
