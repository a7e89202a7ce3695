"""Runners for calibration: at full depth, with trial thresholds, and at lower depths.

A trial runs what would be served: an exit folder with the trial's thresholds. Every exit is asked for every
token, whether that pays or not.
"""

import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import msgspec

from shard.exits.exit_heads import DESCRIPTION
from shard.messages import Criterion, Mode, ShardConfig
from shard.runner import ModelRunner
from shard.tune.path import Thresholds

Field = Literal["thresholds", "breach_thresholds"]
LEAVE: Field = "thresholds"  # thresholds of leaving
BREACH: Field = "breach_thresholds"  # thresholds of breaches in `capped`


class Trials:
    """Makes runners that share one model's weights. `config` is the serving configuration."""

    def __init__(self, config: ShardConfig):
        assert config.exits is not None
        self._config = msgspec.structs.replace(config, exit_fallback=False, exit_deferral=False)
        self._exits = Path(config.exits)
        self.full = ModelRunner(msgspec.structs.replace(config, exit_mode=Mode.FULL, exits=None))

    def with_thresholds(self, thresholds: Thresholds) -> ModelRunner:
        """A runner with these thresholds. `synchronized` is tried as `per_row`, which equals a batch of one:
        no other rows delay an exit."""
        criterion = Criterion(self._config.exit_criterion)
        with _folder(self._exits, criterion, thresholds) as folder:
            return self._runner(exit_mode=Mode.PER_ROW, exits=str(folder))

    def with_layers(self, depth: int) -> ModelRunner:
        """`capped` at a depth."""
        return self._runner(exit_mode=Mode.CAPPED, num_layers=depth)

    def _runner(self, **changes: Any) -> ModelRunner:
        return ModelRunner(msgspec.structs.replace(self._config, **changes), decoder=self.full.decoder)


def write_thresholds(
    folder: Path, criterion: Criterion, thresholds: Thresholds, field: Field = LEAVE
) -> None:
    """Write thresholds into a folder's exits.json, atomically; other fields stay."""
    partial = folder / (DESCRIPTION + ".partial")
    partial.write_text(json.dumps(_described(folder, criterion, thresholds, field), indent=1) + "\n")
    partial.replace(folder / DESCRIPTION)


def _described(
    folder: Path, criterion: Criterion, thresholds: Thresholds, field: Field = LEAVE
) -> dict[str, Any]:
    """exits.json with other thresholds."""
    described: dict[str, Any] = json.loads((folder / DESCRIPTION).read_bytes())
    for spec in described["exits"]:
        spec[field] = spec.get(field, {}) | {criterion.value: thresholds[spec["layer"]]}
    return described


@contextmanager
def _folder(exits: Path, criterion: Criterion, thresholds: Thresholds) -> Iterator[Path]:
    """A temporary folder of the same exits with other thresholds."""
    described = _described(exits, criterion, thresholds)
    with tempfile.TemporaryDirectory(prefix="helios-trial-") as name:
        folder = Path(name)
        for file in exits.glob("*.safetensors"):
            (folder / file.name).symlink_to(file.resolve())
        if shared := described.get("vocabulary"):
            described["vocabulary"] = os.path.relpath((exits / shared).resolve(), folder.resolve())
        (folder / DESCRIPTION).write_text(json.dumps(described))
        yield folder
