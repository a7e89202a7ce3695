"""The path of thresholds that calibration walks, from safe to risky, declared before anything is tested.

It is drawn from answers of its own, the survey, that take no part in the test: any path is honest then. A
good one uses the exits that are worth what asking them costs, and lets each err in proportion to what it
saves. Pure numbers.
"""

import math

import msgspec
import numpy as np
from scipy import optimize

from shard.tune.costs import Costs
from shard.tune.learn_then_test import Bound, largest_risk

Thresholds = dict[int, float]  # by exit layer; 1: nobody leaves there
STEPS = (0.35, 0.6, 0.8, 0.95, 1.1, 1.3, 1.6, 2.0)  # of the largest risk that can pass
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
    by_logits: bool = True  # who is asked has the exit's head run, whether it leaves or not

    def risk(self, thresholds: Thresholds) -> float:
        """Share of tokens that would leave and be wrong."""
        leaving = self._leaving(thresholds)
        wrong = sum(
            np.count_nonzero(who & ~votes.agrees) for who, votes in zip(leaving, self.votes, strict=True)
        )
        return int(wrong) / len(self.votes[0].agrees)

    def shares(self, thresholds: Thresholds) -> list[float]:
        """Of all tokens, those that would leave at each exit."""
        return [float(who.mean()) for who in self._leaving(thresholds)]

    def speedup_bound(self, thresholds: Thresholds, leaving: list[float], costs: Costs) -> float:
        """Over full depth, for one row, when these shares of tokens leave at each exit."""
        asked, staying = [], 1.0
        for votes, share in zip(self.votes, leaving, strict=True):
            probed = float(np.mean(votes.confidences >= 0)) if self.by_logits else share / max(staying, 1e-9)
            asked.append(probed if thresholds[votes.layer] < NEVER else 0.0)
            staying -= share
        return costs.speedup_bound(leaving, asked)

    def _leaving(self, thresholds: Thresholds) -> list[np.ndarray]:
        """Who would leave at each exit, (T,) bool: at the first that is sure enough."""
        gone = np.zeros(len(self.votes[0].agrees), dtype=bool)
        leaving = []
        for votes in self.votes:
            leaving.append(votes.reached(thresholds[votes.layer]) & ~gone)
            gone |= leaving[-1]
        return leaving


class _Errors:
    """How often an exit errs at each confidence: never more where it is surer (isotonic regression)."""

    def __init__(self, votes: Votes):
        order = np.argsort(-votes.confidences, kind="stable")
        self._confidences = votes.confidences[order]  # falling
        self._errors = optimize.isotonic_regression(~votes.agrees[order]).x

    def threshold(self, allowed: float) -> float:
        """The least confidence at which at most so many of those who leave are wrong."""
        count = int(np.searchsorted(self._errors, allowed, side="right"))
        if count == 0:
            return NEVER
        least = math.floor(float(self._confidences[count - 1]) * _STEPS_TO_ONE) / _STEPS_TO_ONE
        return max(least, 0.0)


def declare_path(survey: Survey, num_sequences: int, bound: Bound, costs: Costs) -> list[Thresholds]:
    """Settings whose risks on the survey rise through what so many sequences can prove.

    Each is the fastest of its risk, whichever exits it uses. None at all when nothing can be proven, or when
    no exit is ever right often enough to leave there.
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
    """Looks for settings on a survey."""

    def __init__(self, survey: Survey, costs: Costs):
        self._survey = survey
        self._costs = costs
        self._errors = {votes.layer: _Errors(votes) for votes in survey.votes}
        saved = [costs.saved_ms(i) for i in range(len(survey.votes))]
        self._worth = {
            votes.layer: ms / max(saved) for votes, ms in zip(survey.votes, saved, strict=True)
        }  # of leaving at a layer, the most worthy being 1

    def fastest(self, risk: float) -> Thresholds:
        """A setting of at most this risk: the best exit, and others while another makes it faster."""
        setting = max((self._riskiest({layer}, risk) for layer in self._errors), key=self._merit)
        while True:
            used = {layer for layer, threshold in setting.items() if threshold < NEVER}
            others = (self._riskiest({*used, layer}, risk) for layer in self._errors if layer not in used)
            best = max(others, key=self._merit, default=setting)
            if self._merit(best) <= self._merit(setting):
                return setting
            setting = best

    def _merit(self, setting: Thresholds) -> tuple[bool, float]:
        """That some leave counts most, then the speed."""
        return any(threshold < NEVER for threshold in setting.values()), self._speed(setting)

    def _speed(self, setting: Thresholds) -> float:
        return self._survey.speedup_bound(setting, self._survey.shares(setting), self._costs)

    def _riskiest(self, chosen: set[int], risk: float) -> Thresholds:
        """Thresholds of these exits that let most leave with at most this risk."""

        def setting(error: float) -> Thresholds:
            """What the most worthy exit may err; the others less."""
            return {
                layer: errors.threshold(error * self._worth[layer]) if layer in chosen else NEVER
                for layer, errors in self._errors.items()
            }

        low, high = 0.0, 1.0
        for _ in range(20):
            middle = (low + high) / 2
            low, high = (middle, high) if self._survey.risk(setting(middle)) <= risk else (low, middle)
        return setting(low)
