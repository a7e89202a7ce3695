"""The path of thresholds that calibration tests, from safe to risky, fixed before any test.

It is chosen on separate answers, the survey, which take no part in the test, so that any path is valid. A
good path uses the exits that are worth the cost of asking, and allows each errors in proportion to its
saving. Pure numbers.
"""

import math

import msgspec
import numpy as np
from scipy import optimize

from shard.tune.costs import Costs
from shard.tune.learn_then_test import Bound, largest_risk

Thresholds = dict[int, float]  # by exit layer; 1: no token leaves there
STEPS = (0.35, 0.6, 0.8, 0.95, 1.1, 1.3, 1.6, 2.0)  # shares of the largest risk that can pass
NEVER = 1.0
_STEPS_TO_ONE = 1_000_000  # resolution of thresholds


class Votes(msgspec.Struct, frozen=True):
    """One exit's confidences and correctness at every token of the survey."""

    layer: int
    confidences: np.ndarray  # (T,)
    agrees: np.ndarray  # (T,) bool: its token is full depth's

    def reached(self, threshold: float) -> np.ndarray:
        """(T,) bool: confidence reaches the threshold."""
        return self.confidences >= threshold if threshold < NEVER else np.zeros(len(self.agrees), dtype=bool)


class Survey(msgspec.Struct, frozen=True):
    """Every exit's votes on the same T tokens."""

    votes: list[Votes]
    num_layers: int
    by_logits: bool = True  # asking runs the exit's head, whether the row leaves or not

    def risk(self, thresholds: Thresholds) -> float:
        """Share of tokens that would leave early and be wrong."""
        leaving = self._leaving(thresholds)
        wrong = sum(
            np.count_nonzero(leaves & ~votes.agrees)
            for leaves, votes in zip(leaving, self.votes, strict=True)
        )
        return int(wrong) / len(self.votes[0].agrees)

    def shares(self, thresholds: Thresholds) -> list[float]:
        """Share of all tokens that would leave at each exit."""
        return [float(leaves.mean()) for leaves in self._leaving(thresholds)]

    def speedup_bound(self, thresholds: Thresholds, leaving: list[float], costs: Costs) -> float:
        """Upper bound of one row's speed-up over full depth, if these shares of tokens leave at exits."""
        asked, staying = [], 1.0
        for votes, share in zip(self.votes, leaving, strict=True):
            probed = float(np.mean(votes.confidences >= 0)) if self.by_logits else share / max(staying, 1e-9)
            asked.append(probed if thresholds[votes.layer] < NEVER else 0.0)
            staying -= share
        return costs.speedup_bound(leaving, asked)

    def _leaving(self, thresholds: Thresholds) -> list[np.ndarray]:
        """For each exit, (T,) bool: the tokens for which it is the first exit to reach its threshold."""
        gone = np.zeros(len(self.votes[0].agrees), dtype=bool)
        leaving = []
        for votes in self.votes:
            leaving.append(votes.reached(thresholds[votes.layer]) & ~gone)
            gone |= leaving[-1]
        return leaving


class _Errors:
    """An exit's error rate by confidence, non-increasing (isotonic regression)."""

    def __init__(self, votes: Votes):
        order = np.argsort(-votes.confidences, kind="stable")
        self._confidences = votes.confidences[order]  # falling
        self._errors = optimize.isotonic_regression(~votes.agrees[order]).x

    def threshold(self, allowed: float) -> float:
        """The lowest threshold at which the error rate is at most `allowed`."""
        count = int(np.searchsorted(self._errors, allowed, side="right"))
        if count == 0:
            return NEVER
        least = math.floor(float(self._confidences[count - 1]) * _STEPS_TO_ONE) / _STEPS_TO_ONE
        return max(least, 0.0)


def declare_path(survey: Survey, num_sequences: int, bound: Bound, costs: Costs) -> list[Thresholds]:
    """Settings with rising risk on the survey, around the largest risk that `num_sequences` can prove.

    Each is the fastest of its risk, with any exits. Empty if nothing can be proven, or if no exit is ever
    right often enough.
    """
    provable = largest_risk(num_sequences, bound)
    if provable is None:
        return []
    search = _Search(survey, costs)
    path: list[Thresholds] = []
    for step in STEPS:
        setting = search.fastest(provable * step)
        if setting not in path and any(threshold < NEVER for threshold in setting.values()):
            path.append(setting)
    return path


class _Search:
    """Searches settings on a survey."""

    def __init__(self, survey: Survey, costs: Costs):
        self._survey = survey
        self._costs = costs
        self._errors = {votes.layer: _Errors(votes) for votes in survey.votes}
        saved = [costs.saved_ms(i) for i in range(len(survey.votes))]
        self._worth = {
            votes.layer: ms / max(saved) for votes, ms in zip(survey.votes, saved, strict=True)
        }  # relative saving of leaving at a layer, at most 1

    def fastest(self, risk: float) -> Thresholds:
        """A fast setting of at most this risk: the best exit, plus others while each makes it faster."""
        setting = max((self._riskiest({layer}, risk) for layer in self._errors), key=self._merit)
        while True:
            used = {layer for layer, threshold in setting.items() if threshold < NEVER}
            others = (self._riskiest({*used, layer}, risk) for layer in self._errors if layer not in used)
            best = max(others, key=self._merit, default=setting)
            if self._merit(best) <= self._merit(setting):
                return setting
            setting = best

    def _merit(self, setting: Thresholds) -> tuple[bool, float]:
        """Sort key: first whether any token leaves, then the speed."""
        return any(threshold < NEVER for threshold in setting.values()), self._speed(setting)

    def _speed(self, setting: Thresholds) -> float:
        return self._survey.speedup_bound(setting, self._survey.shares(setting), self._costs)

    def _riskiest(self, chosen: set[int], risk: float) -> Thresholds:
        """Thresholds of these exits that let the most tokens leave with at most this risk."""

        def setting(error: float) -> Thresholds:
            """Thresholds with `error` for the exit of greatest saving, proportionally less for others."""
            return {
                layer: errors.threshold(error * self._worth[layer]) if layer in chosen else NEVER
                for layer, errors in self._errors.items()
            }

        low, high = 0.0, 1.0
        for _ in range(20):
            middle = (low + high) / 2
            low, high = (middle, high) if self._survey.risk(setting(middle)) <= risk else (low, middle)
        return setting(low)
