"""Cache of measurements, keyed by their settings, so that an interrupted calibration resumes."""

import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import msgspec
import numpy as np

from shard.tune.closed_loop import Outcome
from shard.tune.costs import Costs
from shard.tune.path import Survey, Votes

_Struct = TypeVar("_Struct", bound=msgspec.Struct)


class MeasurementCache:
    """A folder of measurements. `basis` names everything that they have in common."""

    def __init__(self, folder: Path, basis: object):
        self._folder = folder
        self._basis = basis
        folder.mkdir(parents=True, exist_ok=True)

    def outcome(self, setting: object, measure: Callable[[], Outcome]) -> Outcome:
        """The outcome of a setting, measured unless cached."""
        return self._struct(setting, Outcome, measure)

    def costs(self, measure: Callable[[], Costs]) -> Costs:
        """The costs for the path, measured unless cached."""
        return self._struct("costs", Costs, measure)

    def survey(self, setting: object, make: Callable[[], Survey]) -> Survey:
        """A survey, made unless cached."""
        path = self._path(setting, ".npz")
        if not path.exists():
            made = make()
            arrays = {f"confidences-{votes.layer}": votes.confidences for votes in made.votes}
            arrays |= {f"agrees-{votes.layer}": votes.agrees for votes in made.votes}
            facts = {"num_layers": np.array(made.num_layers), "by_logits": np.array(made.by_logits)}
            _write(path, lambda partial: _save(partial, arrays | facts))
        with np.load(path) as arrays:
            layers = sorted(int(name.split("-")[1]) for name in arrays if name.startswith("agrees-"))
            votes = [
                Votes(layer, arrays[f"confidences-{layer}"], arrays[f"agrees-{layer}"]) for layer in layers
            ]
            return Survey(votes, int(arrays["num_layers"]), bool(arrays["by_logits"]))

    def _struct(self, setting: object, kind: type[_Struct], make: Callable[[], _Struct]) -> _Struct:
        path = self._path(setting, ".json")
        if path.exists():
            return msgspec.json.decode(path.read_bytes(), type=kind)
        made = make()
        _write(path, lambda partial: partial.write_bytes(msgspec.json.encode(made)))
        return made

    def _path(self, setting: object, suffix: str) -> Path:
        key = hashlib.sha256(msgspec.json.encode([self._basis, setting])).hexdigest()[:16]
        return self._folder / (key + suffix)


def _save(path: Path, arrays: dict[str, np.ndarray]) -> None:
    with path.open("wb") as file:
        np.savez(file, **arrays)  # type: ignore[arg-type]


def _write(path: Path, fill: Callable[[Path], object]) -> None:
    partial = path.with_suffix(".partial")
    fill(partial)
    os.replace(partial, path)
