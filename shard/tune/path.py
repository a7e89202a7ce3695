"""The path of thresholds that calibration walks, from safe to risky, declared before anything is tested.

It is drawn from answers of its own, the survey, that take no part in the test: any path is honest then, and a
good one lets each exit err in proportion to the layers that it saves. Pure numbers.
"""

import math
from collections.abc import Sequence

import msgspec
import numpy as np

from shard.tune.ltt import Bound, largest_risk

Thresholds = dict[int, float]  # by exit layer; 1: nobody leaves there
STEPS = (0.25, 0.5, 0.65, 0.8, 0.9, 1.0, 1.1, 1.25, 1.5, 2.0)  # of the largest risk that can pass
NEVER = 1.0
_STEPS_TO_ONE = 1_000_000  # thresholds are rounded to


class Votes(msgspec.Struct, frozen=True):
    """What one exit says at every token of the survey, whoever left before."""

    layer: int
    confidences: np.ndarray  # (T,)
    agrees: np.ndarray  # (T,) bool: its token is full depth's

    def reached(self, threshold: float) -> np.ndarray:
        """(T,) bool: who is sure enough."""
        return self.confidences >= threshold if threshold < NEVER else np.zeros(len(self.agrees), dtype=bool)


class Survey(msgspec.Struct, frozen=True):
    """Every exit's votes on the same T tokens."""

    votes: list[Votes]
    num_layers: int

    def risk(self, thresholds: Thresholds) -> float:
        """Share of tokens that would leave and be wrong."""
        gone = np.zeros(len(self.votes[0].agrees), dtype=bool)
        wrong = 0
        for votes in self.votes:
            leaving = votes.reached(thresholds[votes.layer]) & ~gone
            wrong += int(np.count_nonzero(leaving & ~votes.agrees))
            gone |= leaving
        return wrong / len(gone)


class _Errors:
    """How often an exit errs at each confidence: never more where it is surer (isotonic regression)."""

    def __init__(self, votes: Votes):
        order = np.argsort(-votes.confidences, kind="stable")
        self._confidences = votes.confidences[order]  # falling
        self._errors = rising_fit((~votes.agrees[order]).astype(float))

    def threshold(self, allowed: float) -> float:
        """The least confidence at which at most so many of those who leave are wrong."""
        count = int(np.searchsorted(self._errors, allowed, side="right"))
        if count == 0:
            return NEVER
        least = math.floor(float(self._confidences[count - 1]) * _STEPS_TO_ONE) / _STEPS_TO_ONE
        return max(least, 0.0)


def rising_fit(values: np.ndarray) -> np.ndarray:
    """The rising sequence nearest to values (T,), by pooling neighbours that fall (Ayer et al. 1955)."""
    means: list[float] = []
    counts: list[int] = []
    for value in values.tolist():
        mean, count = value, 1
        while means and means[-1] >= mean:
            before, weight = means.pop(), counts.pop()
            mean, count = (mean * count + before * weight) / (count + weight), count + weight
        means.append(mean)
        counts.append(count)
    return np.repeat(means, counts)


def declare_path(survey: Survey, num_sequences: int, bound: Bound) -> list[Thresholds]:
    """Settings whose risks on the survey rise through what so many sequences can prove.

    None at all when nothing can be proven, or when no exit is ever right often enough to leave there.
    """
    provable = largest_risk(num_sequences, bound)
    if provable is None:
        return []
    exits = [(votes.layer, _Errors(votes)) for votes in survey.votes]
    path: list[Thresholds] = []
    for step in STEPS:
        setting = _riskiest(survey, exits, provable * step)
        if setting not in path and any(threshold < NEVER for threshold in setting.values()):
            path.append(setting)
    return path


def _riskiest(survey: Survey, exits: Sequence[tuple[int, _Errors]], risk: float) -> Thresholds:
    """Thresholds that let most leave, of those that have at most this risk on the survey."""
    first = exits[0][0]

    def setting(error: float) -> Thresholds:
        """What the first exit may err, and the others less, as they save less."""
        share = {layer: (survey.num_layers - layer) / (survey.num_layers - first) for layer, _ in exits}
        return {layer: errors.threshold(error * share[layer]) for layer, errors in exits}

    low, high = 0.0, 1.0
    for _ in range(20):
        middle = (low + high) / 2
        low, high = (middle, high) if survey.risk(setting(middle)) <= risk else (low, middle)
    return setting(low)
