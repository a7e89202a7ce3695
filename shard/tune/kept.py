"""What has been measured is kept by what it was measured of: what is cut off goes on from there."""

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


class Kept:
    """A folder of measurements. `basis` names everything that they have in common."""

    def __init__(self, folder: Path, basis: object):
        self._folder = folder
        self._basis = basis
        folder.mkdir(parents=True, exist_ok=True)

    def outcome(self, of: object, measure: Callable[[], Outcome]) -> Outcome:
        """The outcome of a setting, measured unless it is here."""
        return self._struct(of, Outcome, measure)

    def costs(self, measure: Callable[[], Costs]) -> Costs:
        """The costs on which the path rests, measured unless they are here."""
        return self._struct("costs", Costs, measure)

    def survey(self, of: object, make: Callable[[], Survey]) -> Survey:
        """A survey, made unless it is here."""
        path = self._path(of, ".npz")
        if not path.exists():
            made = make()
            arrays = {f"confidences-{votes.layer}": votes.confidences for votes in made.votes}
            arrays |= {f"agrees-{votes.layer}": votes.agrees for votes in made.votes}
            facts = {"num_layers": np.array(made.num_layers), "by_logits": np.array(made.by_logits)}
            _write(path, lambda partial: _save(partial, arrays | facts))
        with np.load(path) as arrays:
            layers = sorted(int(name.split("-")[1]) for name in arrays if name.startswith("agrees-"))
            votes = [Votes(it, arrays[f"confidences-{it}"], arrays[f"agrees-{it}"]) for it in layers]
            return Survey(votes, int(arrays["num_layers"]), bool(arrays["by_logits"]))

    def _struct(self, of: object, kind: type[_Struct], make: Callable[[], _Struct]) -> _Struct:
        path = self._path(of, ".json")
        if path.exists():
            return msgspec.json.decode(path.read_bytes(), type=kind)
        made = make()
        _write(path, lambda partial: partial.write_bytes(msgspec.json.encode(made)))
        return made

    def _path(self, of: object, suffix: str) -> Path:
        key = hashlib.sha256(msgspec.json.encode([self._basis, of])).hexdigest()[:16]
        return self._folder / (key + suffix)


def _save(path: Path, arrays: dict[str, np.ndarray]) -> None:
    with path.open("wb") as file:
        np.savez(file, **arrays)  # type: ignore[arg-type]


def _write(path: Path, fill: Callable[[Path], object]) -> None:
    partial = path.with_suffix(".partial")
    fill(partial)
    os.replace(partial, path)
