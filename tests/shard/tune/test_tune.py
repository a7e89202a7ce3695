"""Tuning, on tiny models: every family, every head, resumed, refused; the model itself is never touched."""

import json
from pathlib import Path

import pytest
import torch

from shard.runner import ModelRunner
from shard.tune import pipeline, preflight
from shard.tune.__main__ import main
from shard.tune.batches import Source, load_batch
from shard.tune.evaluation import logits_of
from shard.tune.folder import load_heads, load_vocabulary
from shard.tune.layers import read_backbone
from shard.tune.states import open_or_make
from shard.tune.text import Passage
from shard.tune.training import Trainer
from tests.shard.driving import generate, make_runner
from tests.tiny_models import SHAPES, write_tiny_model

PROMPTS = [
    f"Tell me of the {word} and the {other}." for word in ("dog", "fox", "day") for other in "abcdefgh"
]

PROMPT = [5, 6, 7, 8, 9]


@pytest.fixture(scope="module")
def prompts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("prompts") / "few.txt"
    path.write_text("\n".join(PROMPTS))
    return path


def tune(model: Path, out: Path, prompts: Path, *flags: str) -> int:
    arguments = [str(model), "--out", str(out), "--work", str(out.parent / "work"), "--prompts", str(prompts)]
    arguments += ["--num-answers", "48", "--max-new-tokens", "12", "--dtype", "float32", "--device", "cpu"]
    arguments += ["--num-threads", "1", "--exit-layers", "1,3", "--steps", "12", "--batch-tokens", "96"]
    arguments += ["--vocabulary-steps", "4", *flags]
    return main(arguments)


@pytest.mark.parametrize("shape", SHAPES)
def test_every_family_is_tuned_served_as_trained_and_left_as_it_was(
    shape: str, tmp_path: Path, prompts: Path
):
    model, out = write_tiny_model(tmp_path / "model", shape), tmp_path / "exits"
    before = (model / "model.safetensors").read_bytes()
    alone = generate(make_runner(model), [PROMPT], 24)[0].ids
    assert tune(model, out, prompts, "--head-rank", "16") == 0
    assert (model / "model.safetensors").read_bytes() == before
    assert generate(early(model, out, threshold=1.0), [PROMPT], 24)[0].ids == alone
    check_served_as_trained(model, out, tmp_path / "states")


@pytest.mark.parametrize("head", ["norm", "mlp", "block"])
def test_every_head_learns_and_is_served_as_trained(head: str, tmp_path: Path, prompts: Path):
    model, out = write_tiny_model(tmp_path / "model", "llama"), tmp_path / "exits"
    flags = ["--head", head, "--steps", "60", "--rate", "0.01"]
    assert tune(model, out, prompts, *(flags if head != "norm" else [*flags, "--head-rank", "32"])) == 0
    check_served_as_trained(model, out, tmp_path / "states")
    result = json.loads((out / "tuning.json").read_text())
    assert (
        result["history"][-1]["agreement"]["few"]["3"] > 0.1
    )  # of 312 tokens; at random it is less than 0.01


def test_the_same_seed_gives_the_same_heads_and_another_gives_others(tmp_path: Path, prompts: Path):
    model = write_tiny_model(tmp_path / "model", "llama")
    made = []
    for number, seed in enumerate(["3", "3", "4"]):
        assert tune(model, tmp_path / str(number), prompts, "--seed", seed) == 0
        made.append((tmp_path / str(number) / "exits.safetensors").read_bytes())
    assert made[0] == made[1] != made[2]


def test_what_was_interrupted_goes_on_to_the_same_heads(
    tmp_path: Path, prompts: Path, monkeypatch: pytest.MonkeyPatch
):
    model = write_tiny_model(tmp_path / "model", "qwen3")
    assert tune(model, tmp_path / "whole", prompts, "--head-rank", "16") == 0
    monkeypatch.setattr(pipeline, "SAVE_STEPS", 5)
    save = Trainer.save

    def save_and_stop(trainer: Trainer, path: Path, notes: object) -> None:
        save(trainer, path, notes)
        if trainer.step == 5:
            raise KeyboardInterrupt

    monkeypatch.setattr(Trainer, "save", save_and_stop)
    assert tune(model, tmp_path / "halves", prompts, "--head-rank", "16") == 130
    assert not (tmp_path / "halves" / "exits.safetensors").exists()
    assert tune(model, tmp_path / "halves", prompts, "--head-rank", "16", "--resume") == 0
    for name in ("exits.safetensors", "vocabulary.safetensors", "exits.json", "tuning.json"):
        assert (tmp_path / "halves" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_a_variant_reads_the_vocabulary_it_began_with(tmp_path: Path, prompts: Path):
    model = write_tiny_model(tmp_path / "model", "llama")
    base, variant = tmp_path / "base", tmp_path / "variants" / "one"
    assert tune(model, base, prompts, "--head-rank", "16") == 0
    before = (base / "vocabulary.safetensors").read_bytes()
    flags = ["--head-rank", "16", "--init", str(base), "--freeze-vocabulary"]
    assert tune(model, variant, prompts, *flags, "--vocabulary", str(base / "vocabulary.safetensors")) == 0
    assert (base / "vocabulary.safetensors").read_bytes() == before
    described = json.loads((variant / "exits.json").read_text())
    assert described["vocabulary"] == "../../base/vocabulary.safetensors"
    check_served_as_trained(model, variant, tmp_path / "states")


def test_exits_that_propose_learn_to_be_decided_by_the_lm_head(
    tmp_path: Path, prompts: Path, capsys: pytest.CaptureFixture[str]
):
    model = write_tiny_model(tmp_path / "model", "llama")
    base, variant = tmp_path / "base", tmp_path / "variant"
    shares = []
    for out, flags in ((base, []), (variant, ["--head-rerank", "8", "--init", str(base)])):
        assert tune(model, out, prompts, "--head-rank", "4", "--steps", "60", "--rate", "0.01", *flags) == 0
        check_served_as_trained(model, out, tmp_path / f"states-{out.name}")
        shares.append(json.loads((out / "tuning.json").read_text())["history"][-1]["agreement"]["few"]["3"])
    assert [spec["rerank"] for spec in json.loads((variant / "exits.json").read_text())["exits"]] == [8, 8]
    assert shares[1] > shares[0] + 0.1  # rank 4 says little of 312 tokens
    assert tune(model, tmp_path / "back", prompts, "--head-rank", "4", "--init", str(variant)) == 1
    assert "--head-rerank is needed as well" in capsys.readouterr().err


def test_text_can_be_given(tmp_path: Path, prompts: Path):
    model = write_tiny_model(tmp_path / "model", "llama")
    text = tmp_path / "own.jsonl"
    text.write_text("\n".join(json.dumps({"prompt": "Say: ", "text": line}) for line in PROMPTS))
    assert tune(model, tmp_path / "exits", prompts, "--data", str(text)) == 0
    result = json.loads((tmp_path / "exits" / "tuning.json").read_text())
    assert result["num_training_tokens"]["own"] > 100


@pytest.mark.parametrize("shape", ["qwen3", "opt", "gpt2"])
def test_layerskip_trains_the_model_itself_into_a_folder_of_its_own(
    shape: str, tmp_path: Path, prompts: Path
):
    model, out = write_tiny_model(tmp_path / "model", shape), tmp_path / "skipping"
    before = (model / "model.safetensors").read_bytes()
    assert tune(model, out, prompts, "--recipe", "layerskip", "--rate", "0.1") == 0
    assert (model / "model.safetensors").read_bytes() == before
    assert (out / "model.safetensors").read_bytes() != before
    runner = make_runner(out, exit_mode="per_row", exit_layers=[2], exit_threshold=0.0, exit_fallback=False)
    assert len(generate(runner, [PROMPT])[0].ids) == 12


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["--exit-layers", "1,4"], "Exit layer 4 is out of range: between 1 and 3."),
        (["--exit-layers", "3,1"], "Exit layers must be given once each and rise, not [3, 1]."),
        (["--head-rank", "65"], "Head rank 65 is out of range: between 1 and 64."),
        (["--head", "norm"], "A norm head has nothing to learn"),
        (["--data", "BAD"], "Line 2 of"),
        (["--prompts", "no-such-file.txt"], "no-such-file.txt cannot be read: No such file or directory."),
        (["--head-rerank", "8"], "--head-rerank needs a --head-rank"),
        (["--freeze-vocabulary"], "--freeze-vocabulary needs --init"),
    ],
)
def test_what_cannot_be_done_is_refused_in_one_sentence(
    flags: list[str], sentence: str, tmp_path: Path, prompts: Path, capsys: pytest.CaptureFixture[str]
):
    model = write_tiny_model(tmp_path / "model", "llama")
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"text": "fine"}\n{"txt": 1}\n')
    assert (
        tune(model, tmp_path / "exits", prompts, *(str(bad) if flag == "BAD" else flag for flag in flags))
        == 1
    )
    said = capsys.readouterr().err.strip()
    assert said.splitlines()[-1].startswith("helios tune: ")
    assert sentence in said
    assert not (tmp_path / "exits" / "exits.json").exists()


def test_too_little_memory_is_said_before_any_work(
    tmp_path: Path, prompts: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    model = write_tiny_model(tmp_path / "model", "llama")
    # the tighter of host and container: tests/shard/test_host_memory.py
    monkeypatch.setattr(preflight, "available_bytes", lambda: 1 << 20)
    assert tune(model, tmp_path / "exits", prompts) == 1
    assert "1 MiB are free" in capsys.readouterr().err


def early(model: Path, exits: Path, threshold: float) -> ModelRunner:
    return make_runner(
        model, exits=str(exits), exit_mode="per_row", exit_threshold=threshold, exit_fallback=False
    )


def check_served_as_trained(model: Path, exits: Path, states: Path) -> None:
    """What an engine says at the first exit is what the trained head says of these tokens."""
    made = generate(early(model, exits, threshold=0.0), [PROMPT], 24)[0]
    there = torch.tensor([token.exit_layer == 1 for token in made.tokens])
    assert there.sum() >= len(there) / 2
    passage = Passage([*PROMPT, *made.ids], len(PROMPT))
    cache = open_or_make(states, "", [passage], [1, 4], lambda: make_runner(model), lambda done: None)
    source = Source("made", cache, [0], [0], [0])
    batch = load_batch([source], [(0, 0)], [1], torch.empty(0))
    back, head = read_backbone(model, 256, torch.device("cpu")), load_heads(exits, torch.device("cpu"))[0]
    rows = back.head if head.rank is None else load_vocabulary(exits, torch.device("cpu"))
    logits = logits_of(head, head.features(back, batch.states[1], batch.rows), rows, back.head)
    said = logits.gather(1, torch.tensor(made.ids)[:, None])[:, 0]
    spread = logits.max(1).values - logits.mean(1)
    gaps = ((logits.max(1).values - said) / spread)[there].sort().values
    # Cached states are bfloat16, which may put a token in or out of those that a proposing head lets decide.
    assert gaps[: len(gaps) - (head.rerank is not None)].max() < 0.02
