"""`helios calibrate`: a promise kept on other prompts; none where none can be; and resumed when cut off."""

import json
import random
from pathlib import Path

import pytest
from PIL import Image

from shard.exits.exit_heads import read_exits
from shard.exits.settings import Settings
from shard.messages import Criterion, Mode, ShardConfig
from shard.quality.certificate import Setting, read_certificate
from shard.tune import calibrate, calibration
from shard.tune.calibration import Asked, Calibration
from shard.tune.closed_loop import Wanted, measure
from shard.tune.costs import Costs
from shard.tune.learn_then_test import Bound
from shard.tune.path import NEVER
from shard.tune.trials import Trials
from tests.shard.driving import make_runner
from tests.shard.quality.certificates import BASIS
from tests.shard.trained_model import sentence, text_of

RISK = 0.1
SMALL = ["--num-sequences", "120", "--num-survey", "30", "--max-new-tokens", "16", "--risk", str(RISK)]


@pytest.fixture(autouse=True)
def steady_costs(monkeypatch: pytest.MonkeyPatch) -> None:
    """The path follows from what layers and heads cost: here that is always the same."""
    costs = Costs(segment_ms=[1.0] * 4, ask_ms=[0.1] * 3, head_ms=0.2)
    monkeypatch.setattr(calibration, "measure_costs", lambda runner: costs)


def questions(seed: int, count: int) -> list[list[int]]:
    """Dictionaries with the first question's key, which the model goes on from."""
    draw = random.Random(seed)
    return [sentence(draw)[0][:8] for _ in range(count)]


@pytest.fixture
def exits(tmp_path: Path) -> Path:
    folder = tmp_path / "exits"
    folder.mkdir()
    described = [{"layer": layer, "head": "norm"} for layer in (1, 2, 3)]
    (folder / "exits.json").write_text(json.dumps({"num_layers": 4, "exits": described}))
    return folder


def run(model: Path, exits: Path, capsys, *flags: str, prompts: list[str] | None = None):
    """Exit code, the last line, and what was said to a person, in one line."""
    file = exits.parent / "prompts.txt"
    if prompts is None:
        prompts = list(dict.fromkeys(map(text_of, questions(1, 200))))
    file.write_text("\n".join(prompts))
    places = ["--prompts", str(file), "--cache-dir", str(exits.parent / "cache")]
    how = ["--exits", str(exits), "--dtype", "float32", "--device", "cpu", "--num-threads", "1"]
    code = calibrate.main([str(model), *how, *places, "--kv-cache-bytes", str(1 << 25), *SMALL, *flags])
    said = capsys.readouterr()
    return code, json.loads(said.out) if said.out else {}, " ".join(said.err.split())


def thresholds(exits: Path, criterion: str = "softmax") -> dict[int, float]:
    specs = json.loads((exits / "exits.json").read_text())["exits"]
    return {spec["layer"]: spec["thresholds"][criterion] for spec in specs}


def test_of_the_settings_that_passed_the_fastest_is_taken():
    curve = [
        Setting({1: threshold}, 0.01, p_value, {}, depth)
        for threshold, p_value, depth in (
            (0.9, 0.001, 3.0),
            (0.8, 0.02, 2.0),
            (0.7, 0.09, 2.5),
            (0.6, 0.2, 1.0),
        )
    ]
    asked = Asked(Settings(Mode.PER_ROW), Bound(0.05, 0.9), Wanted(16), [1])
    found = Calibration(asked, None, None, None)
    assert found.guarantee(curve, lambda setting: 4 / setting.expected_depth, BASIS).thresholds == {1: 0.8}
    assert found.guarantee(curve[3:], lambda setting: 4 / setting.expected_depth, BASIS).thresholds == {
        1: NEVER
    }


def test_the_promise_is_kept_on_other_prompts(trained: Path, exits: Path, capsys):
    code, result, said = run(trained, exits, capsys)
    assert code == 0, said
    certificate = read_certificate(exits)
    assert certificate is not None
    (guarantee,) = certificate.guarantees
    assert result["guarantee"]["thresholds"] == {str(k): v for k, v in guarantee.thresholds.items()}
    assert thresholds(exits) == guarantee.thresholds
    assert min(guarantee.thresholds.values()) < 1
    assert "With confidence 90%, at most 10.0% of tokens leave early" in said
    passed = [setting for setting in guarantee.curve if setting.p_value <= 0.1]
    (chosen,) = [setting for setting in passed if setting.thresholds == guarantee.thresholds]
    assert chosen.coverage.get(4, 0.0) < 0.8
    assert len(guarantee.curve) - len(passed) <= 1
    with Image.open(exits / "calibration.png") as image:
        assert image.format == "PNG"
        assert len(image.getcolors(1 << 20) or []) > 20

    config = ShardConfig(
        str(trained), dtype="float32", num_threads=1, kv_cache_bytes=1 << 25, exits=str(exits)
    )
    trials = Trials(config)
    runner = trials.with_thresholds(guarantee.thresholds)
    outcome = measure(runner, trials.full, questions(2, 200), Wanted(16))
    assert sum(outcome.risks) / len(outcome.risks) <= RISK
    assert outcome.coverage.get(4, 0.0) == pytest.approx(chosen.coverage.get(4, 0.0), abs=0.1)
    served = make_runner(trained, exits=str(exits), exit_mode="per_row")
    assert served.ready().warnings == []


def test_what_was_cut_off_goes_on_from_there(trained: Path, exits: Path, capsys, monkeypatch):
    def count(limit: int) -> list[int]:
        calls: list[int] = []

        def measured(*arguments):
            calls.append(1)
            if len(calls) > limit:
                raise KeyboardInterrupt
            return measure(*arguments)

        monkeypatch.setattr(calibration, "measure", measured)
        return calls

    count(1)
    assert run(trained, exits, capsys)[0] == 130
    assert read_certificate(exits) is None
    calls = count(99)
    code, result, _ = run(trained, exits, capsys)
    assert code == 0
    assert len(calls) == len(result["guarantee"]["curve"]) - 1
    calls = count(99)
    again = run(trained, exits, capsys)[1]
    assert calls == []
    assert again["guarantee"]["curve"] == result["guarantee"]["curve"]
    calls = count(99)
    run(trained, exits, capsys, "--seed", "1")  # other prompts, other answers
    assert calls


@pytest.mark.parametrize(("mode", "fill"), [("synchronized", "recompute"), ("per_row", "project")])
def test_every_mode_and_fill_has_a_guarantee_of_its_own(trained: Path, exits: Path, capsys, mode, fill):
    flags = ("--num-sequences", "60", "--risk", "0.2")
    assert run(trained, exits, capsys, *flags)[0] == 0
    assert run(trained, exits, capsys, *flags, "--mode", mode, "--fill", fill)[0] == 0
    certificate = read_certificate(exits)
    assert certificate is not None
    assert [(guarantee.mode, guarantee.fill) for guarantee in certificate.guarantees] == [
        ("per_row", "recompute"),
        (mode, fill),
    ]


def test_each_depth_of_capped_has_an_agreement_with_its_bound(trained: Path, exits: Path, capsys):
    code, result, said = run(trained, exits, capsys, "--mode", "capped")
    assert code == 0, said
    certificate = read_certificate(exits)
    assert certificate is not None
    found = certificate.depths
    assert [known.depth for known in found] == [1, 2, 3]
    assert all(0 <= known.lower_bound < known.agreement <= 1 for known in found)
    assert found[0].agreement < found[2].agreement
    assert len(result["speedup_bounds"]) == 3
    described = read_exits(exits).exits
    assert all(
        not spec.thresholds and 0 < spec.breach_thresholds[Criterion.SOFTMAX] < 1 for spec in described
    )
    capped = make_runner(trained, exits=str(exits), exit_mode="capped", num_layers=2)
    assert capped.ready().warnings == []
    (exit_head,) = capped.model.exits
    assert exit_head.threshold(Criterion.SOFTMAX, 0.9) == described[1].breach_thresholds[Criterion.SOFTMAX]
    staying = make_runner(trained, exits=str(exits), exit_mode="per_row")
    assert {exit_head.threshold(Criterion.SOFTMAX, 0.9) for exit_head in staying.model.exits} == {0.9}


def test_no_exit_is_allowed_where_none_is_right(tiny_model, exits: Path, capsys):
    """A random model's layers know nothing of what the last one will say."""
    words = [f"Tell me of {word} {number}" for word in ("dogs", "foxes") for number in range(80)]
    flags = ("--risk", "0.05", "--num-sequences", "60", "--max-new-tokens", "8")
    code, result, said = run(tiny_model("llama"), exits, capsys, *flags, prompts=words)
    assert code == 0, said
    assert "No exit can be allowed" in said
    assert set(thresholds(exits).values()) == {NEVER}
    assert result["speedup_bound"] == 1
    certificate = read_certificate(exits)
    assert certificate is not None
    assert set(certificate.guarantees[0].thresholds.values()) == {1}


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (
            ("--risk", "0.02", "--num-sequences", "100"),
            "100 sequences allow no exit at risk 0.02, even if no early token is wrong: at least 114 are",
        ),
        (
            ("--num-sequences", "4000"),
            "prompts.txt holds 200 prompts, but 4000 are to be answered and 30 others",
        ),
        (("--max-new-tokens", "121"), "The longest prompt has 8 tokens, and the model holds 128"),
        (("--criterion", "classifier"), "exit layer 1 has no probe"),
        (("--kv-cache-bytes", "100"), "a KV cache of 100 bytes holds no block"),
    ],
)
def test_what_cannot_be_done_is_one_sentence(trained: Path, exits: Path, capsys, flags, sentence: str):
    code, _, said = run(trained, exits, capsys, *flags)
    assert code == 1
    assert said.startswith("helios calibrate: ")
    assert sentence in said


def test_exits_that_are_not_there_or_of_another_model(trained: Path, tiny_model, exits: Path, capsys):
    (exits / "exits.json").write_text('{"num_layers": 30, "exits": [{"layer": 20}]}')
    assert "exits were made for a model of 30 layers, not 4" in run(trained, exits, capsys)[2]
    (exits / "exits.json").unlink()
    assert "exits.json does not exist" in run(trained, exits, capsys)[2]
    assert "There is no model at" in run(trained / "nothing", exits, capsys)[2]
