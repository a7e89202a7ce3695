"""Derives the repository from the settings, and a shard's settings from a candidate at a depth."""

from os.path import expanduser  # leaves a home that is not known as it is written
from pathlib import Path

import msgspec

from router.catalog.repository import Candidate, Choice, Repository, default_path, read_repository
from router.settings.config import Config
from router.settings.exit_flags import drafters_of
from router.settings.options import ConfigError
from router.settings.toml_lines import TomlError
from shard.messages import Mode, ShardConfig

_NAMED_BY_CANDIDATES = (
    "model_id",
    "revision",
    "num_layers",
    "exit_mode",
    "exit_layers",
    "exits",
    "replay_exits",
)


def repository_of(config: Config) -> Repository:
    """The repository that --repository names, else the embedded model's, else one of the flags' model alone.

    Raises `ConfigError` when the file is unusable, or flags set what its candidates set.
    """
    own_words = [name for name in _NAMED_BY_CANDIDATES if getattr(config, name) != getattr(_DEFAULTS, name)]
    if config.repository is not None:
        if own_words:
            sentence = f"{own_words[0]} has no use with repository: each of its candidates names its own."
            raise ConfigError(own_words[0], sentence)
        return _read(Path(expanduser(config.repository)))
    if own_words or config.device == "sim" or config.shard_addresses:
        return Repository(candidates=(_flags_as_candidate(config),))
    return _read(default_path())


def is_of_flags(config: Config, candidate: Candidate) -> bool:
    """The candidate was made from flags, not read from a repository."""
    return config.repository is None and candidate == _flags_as_candidate(config)


def begun_with(config: Config, repository: Repository) -> Config:
    """The settings with the first candidate's model, as if flags had named it."""
    if config.repository is None:
        return config
    first = repository.candidates[0]
    depth = None if first.whole else first.depths[-1]
    return msgspec.structs.replace(
        config,
        model_id=first.model,
        revision=first.revision,
        num_layers=depth,
        exit_mode=first.mode if depth is None else Mode.CAPPED,
        exits=_exits(first, depth),
        replay_exits=first.replay_exits,
        cost_model=first.cost_model or config.cost_model,
    )


def shard_config(config: Config, candidate: Candidate, folder: Path, depth: int | None) -> ShardConfig:
    """Settings of shard 0 for a candidate whose model is in `folder`. A depth of None: all layers.

    Other shards differ in `device` alone.
    """
    by_flags = config.shard_config(folder, 0)
    mode = candidate.mode if depth is None else Mode.CAPPED
    return msgspec.structs.replace(
        by_flags,
        num_layers=depth,
        exit_mode=mode,
        drafters=list(drafters_of(config.drafters, mode, candidate.exits is not None)),
        exit_layers=[] if candidate.exits is not None else list(config.exit_choice.layers),
        exits=_exits(candidate, depth),
        replay_exits=candidate.replay_exits or by_flags.replay_exits,
        cost_model=candidate.cost_model or config.cost_model,
    )


def is_capped(choice: Choice, num_layers: int) -> bool:
    """Fewer than all layers are loaded; every token exits at the last one."""
    return choice.depth < num_layers


def _exits(candidate: Candidate, depth: int | None) -> str | None:
    return candidate.exits if depth is not None or candidate.mode != Mode.FULL else None


def _flags_as_candidate(config: Config) -> Candidate:
    """The only candidate of a repository made from flags."""
    mode, depth = config.exit_mode or Mode.FULL, config.exit_choice.depth
    is_whole = mode != Mode.CAPPED
    return Candidate(
        name=config.model_name,
        model=config.model_id,
        revision=config.revision,
        exits=config.exits,
        mode=mode if is_whole else Mode.FULL,
        depths=() if is_whole or depth is None else (depth,),
        whole=is_whole,
    )


def _read(path: Path) -> Repository:
    try:
        return read_repository(path)
    except TomlError as error:
        raise ConfigError("repository", str(error)) from None


_DEFAULTS = Config()
