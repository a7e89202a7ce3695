"""What is offered: the repository of a file, the embedded model's, or the flags' own model alone."""

from pathlib import Path

import pytest

from router.catalog.candidate_config import begun_with, repository_of, shard_config
from router.settings.config import Config
from router.settings.options import ConfigError


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "repository.toml"
    path.write_text(
        """
        [[candidate]]
        name = "small"
        model = "maker/small"
        exits = "heads"
        mode = "per_row"
        depths = [6, 9]
        [[candidate]]
        name = "large"
        model = "maker/large"
        """
    )
    return str(path)


def test_without_flags_it_is_the_embedded_models():
    assert [candidate.name for candidate in repository_of(Config()).candidates] == ["full", "chat", "code"]


def test_a_mode_asked_for_is_not_left_though_it_be_the_default():
    (candidate,) = repository_of(Config(exit_mode="full")).candidates
    assert (candidate.name, candidate.mode, candidate.whole) == (Config().model_id, "full", True)


def test_a_model_named_by_flags_is_alone():
    config = Config(model_id="mine", exit_mode="capped", exits="heads", num_layers=9)
    (candidate,) = repository_of(config).candidates
    assert (candidate.model, candidate.depths, candidate.whole) == ("mine", (9,), False)


def test_flags_may_not_say_what_candidates_say(file):
    with pytest.raises(ConfigError, match="exit_mode has no use with repository"):
        repository_of(Config(repository=file, exit_mode="speculative", exits="heads"))


def test_a_bad_file_is_a_setting_that_cannot_be_used(tmp_path):
    with pytest.raises(ConfigError, match=r"none\.toml cannot be read"):
        repository_of(Config(repository=str(tmp_path / "none.toml")))


def test_the_first_candidate_begins(file, tmp_path):
    config = Config(repository=file)
    begun = begun_with(config, repository_of(config))
    assert (begun.model_id, begun.exit_mode, begun.num_layers) == ("maker/small", "per_row", None)
    assert begun.exits == str(tmp_path / "heads")


def test_flags_begin_as_they_stand():
    config = Config(model_id="mine", exit_mode="per_row", exit_layers=(3,))
    assert begun_with(config, repository_of(config)) is config


def test_a_candidate_is_capped_below_its_full_depth(file, tmp_path):
    config = Config(repository=file)
    repository = repository_of(config)
    small, large = (repository.find(name) for name in ("small", "large"))
    capped = shard_config(config, small, Path("/models/small"), 6)
    assert (capped.exit_mode, capped.num_layers, capped.exits) == ("capped", 6, str(tmp_path / "heads"))
    whole = shard_config(config, small, Path("/models/small"), None)
    assert (whole.exit_mode, whole.num_layers, whole.exits) == ("per_row", None, str(tmp_path / "heads"))
    plain = shard_config(config, large, Path("/models/large"), None)
    assert (plain.exit_mode, plain.exits, plain.model) == ("full", None, "/models/large")


def test_a_candidate_whose_exits_are_replayed_is_marked_so(tmp_path):
    path = tmp_path / "repository.toml"
    path.write_text(
        '[[candidate]]\nname = "small"\nmodel = "m"\nmode = "per_row"\ndepths = [6]\n'
        'exits = "heads"\nreplay_exits = "shares.json"\n'
    )
    config = Config(repository=str(path))
    repository = repository_of(config)
    assert begun_with(config, repository).marks == ("exit-replay",)
    capped = shard_config(config, repository.candidates[0], Path("/models/small"), 6)
    assert capped.replay_exits == str(tmp_path / "shares.json")


def test_shards_get_of_a_model_named_by_flags_what_flags_say():
    config = Config(model_id="mine", exit_mode="per_row", exit_layers=(3, 6))
    (candidate,) = repository_of(config).candidates
    folder = Path("/models/mine")
    assert shard_config(config, candidate, folder, None) == config.shard_config(folder, 0)
