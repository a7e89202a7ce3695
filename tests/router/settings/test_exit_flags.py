"""The flags of early exit: what a shard is asked for, and one sentence for what they cannot say together."""

import pytest

from router.settings import options
from router.settings.config import GIB, Config
from router.settings.machine import Machine
from router.settings.options import ConfigError, OneSentenceParser

LAYERSKIP = "facebook/layerskip-llama2-7B"
CPU_BOX = Machine(num_gpus=0, num_cores=8, available_bytes=16 * GIB)


def read(*argv):
    return options.read(Config, OneSentenceParser(prog="helios serve"), argv, {})


def asked(tmp_path, *argv):
    return read(*argv).settle(CPU_BOX).shard_config(tmp_path, 0)


def test_a_shard_is_asked_for_all_that_the_flags_say(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = asked(
        tmp_path,
        *(
            "--exit-mode",
            "per_row",
            "--exits",
            "heads",
            "--exit-criterion",
            "margin",
            "--exit-threshold",
            "0.5",
        ),
        *("--kv-fill", "project", "--no-exit-fallback", "--replay-exits", "shares.json"),
    )
    assert (config.exit_mode, config.exit_criterion, config.exit_threshold) == ("per_row", "margin", 0.5)
    assert (config.kv_fill, config.exit_fallback, config.exit_layers) == ("project", False, [])
    assert (config.exits, config.replay_exits) == (f"{tmp_path}/heads", f"{tmp_path}/shares.json")


def test_by_default_nothing_leaves_early(tmp_path):
    config = asked(tmp_path)
    assert (config.exit_mode, config.exit_layers, config.exits, config.exit_fallback) == (
        "full",
        [],
        None,
        True,
    )


@pytest.mark.parametrize("argv", [("--exit-layers", "8,16"), ("--exit-layers", "8", "--exit-layers", "16")])
def test_exit_layers_come_by_commas_or_one_by_one(tmp_path, argv):
    assert asked(tmp_path, "--exit-mode", "per_row", *argv).exit_layers == [8, 16]


def test_exit_layers_come_as_numbers_from_a_file(tmp_path):
    file = tmp_path / "helios.toml"
    file.write_text('exit_mode = "per_row"\nexit_layers = [8, 16]\nexit_threshold = 1')
    config = read("--config", str(file))
    assert (config.exit_layers, config.exit_threshold) == ((8, 16), 1.0)


def test_a_known_layerskip_checkpoint_brings_its_exits_when_a_mode_is_asked(tmp_path):
    assert asked(tmp_path, "--model-id", LAYERSKIP, "--exit-mode", "speculative").exit_layers == [8, 16]
    assert asked(tmp_path, "--model-id", LAYERSKIP).exit_layers == []
    own = asked(tmp_path, "--model-id", LAYERSKIP, "--exit-mode", "per_row", "--exit-layers", "4")
    assert own.exit_layers == [4]


@pytest.mark.parametrize(
    ("argv", "drafters"),
    [
        ([], []),
        (["--exit-mode", "speculative"], ["text"]),
        (["--exit-mode", "speculative", "--exit-layers", "8"], ["text", "exit"]),
        (["--exit-mode", "speculative", "--exit-layers", "8", "--drafters", "exit"], ["exit"]),
        (["--exit-mode", "speculative", "--drafters", "text,head"], ["text", "head"]),
        (["--exit-mode", "capped", "--exit-layers", "8"], []),
        (["--exit-mode", "capped", "--exit-layers", "8", "--drafters", "text"], ["text"]),
    ],
)
def test_drafters_in_effect(tmp_path, argv, drafters):
    assert asked(tmp_path, *argv).drafters == drafters


def test_a_trained_head_is_named_by_its_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    flags = ["--exit-mode", "speculative", "--drafters", "text,head"]
    assert asked(tmp_path, *flags, "--drafter-head", "heads").draft_head == f"{tmp_path}/heads"
    assert asked(tmp_path, *flags).draft_head is None


def test_capped_loads_as_many_layers_as_its_exit_has(tmp_path):
    assert asked(tmp_path, "--exit-mode", "capped", "--exit-layers", "6").num_layers == 6
    assert asked(tmp_path, "--exit-mode", "capped", "--num-layers", "6").num_layers == 6
    both = asked(tmp_path, "--exit-mode", "capped", "--exit-layers", "6,12", "--num-layers", "6")
    assert both.num_layers == 6


@pytest.mark.parametrize(
    ("argv", "sentence"),
    [
        (["--exit-threshold", "1.5"], "exit_threshold must be at most 1, not 1.5."),
        (["--exit-threshold", "-0.1"], "exit_threshold must be at least 0, not -0.1."),
        (["--exit-threshold", "nan"], "exit_threshold must be at least 0, not nan."),
        (["--exit-threshold", "high"], "exit_threshold must be a number, not 'high'."),
        (["--score-rate", "2"], "score_rate must be at most 1, not 2."),
        (["--exit-mode", "per_row", "--exit-layers", "0"], "exit_layers must be at least 1, not 0."),
        (
            ["--exit-mode", "per_row", "--exit-layers", "8,"],
            "exit_layers must be a whole number, not ''.",
        ),
        (["--exit-mode", "per_row", "--exit-layers", "16,8"], "exit_layers must rise, not 16,8."),
        (
            ["--exit-mode", "per_row"],
            "exit_mode per_row needs exit_layers or exits: where the model may be left.",
        ),
        (
            ["--exit-mode", "per_row", "--exit-layers", "8", "--exits", "heads"],
            "exit_layers cannot be given with exits: that folder names its own.",
        ),
        (
            ["--exit-layers", "8"],
            "exit_layers has no use in exit_mode full, in which nothing is left early: "
            "choose synchronized, per_row, capped or speculative.",
        ),
        (
            ["--exit-mode", "capped"],
            "exit_mode capped needs num_layers or exit_layers: how many layers to load.",
        ),
        (
            ["--exit-mode", "capped", "--exit-layers", "6,12", "--num-layers", "7"],
            "num_layers must be one of exit_layers (6,12) in exit_mode capped, not 7.",
        ),
        (
            ["--drafters", "text"],
            "drafters has no use in exit_mode full: choose speculative, per_row or capped.",
        ),
        (
            ["--exit-mode", "speculative", "--drafters", "text,text"],
            "drafters must differ, not text,text.",
        ),
        (
            ["--exit-mode", "speculative", "--drafters", "text,exit"],
            "drafters cannot be exit without exit_layers or exits.",
        ),
        (
            ["--exit-mode", "speculative", "--exit-layers", "8", "--drafters", "exit,text"],
            "drafters must have exit last: it costs most.",
        ),
        (
            ["--exit-mode", "per_row", "--exit-layers", "8", "--drafters", "head"],
            "drafters can be head in exit_mode speculative alone, and not beside exit: "
            "it reads the states of whole passes.",
        ),
        (
            ["--exit-mode", "speculative", "--drafter-head", "heads"],
            "drafter_head has no use without the drafter head.",
        ),
        (
            ["--exit-mode", "per_row", "--exit-layers", "8", "--drafters", "text,exit"],
            "drafters cannot be exit in exit_mode per_row: tokens leave there.",
        ),
        (
            ["--exit-mode", "speculative", "--exit-layers", "8", "--drafters", "text"],
            "exit_layers has no use in exit_mode speculative without the drafter exit.",
        ),
        (
            ["--exit-mode", "speculative", "--exit-layers", "8", "--replay-exits", "shares.json"],
            "replay_exits needs exit_mode synchronized, per_row or capped, not speculative: "
            "the others do not go by where each token may leave.",
        ),
    ],
)
def test_a_contradiction_is_refused_in_one_sentence(argv, sentence):
    with pytest.raises(ConfigError) as caught:
        read(*argv)
    assert str(caught.value) == sentence
