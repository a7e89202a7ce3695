"""The steps of a calibration: thresholds with a guarantee, and the agreement of each depth.

Thresholds: a survey of answers at full depth gives a path of settings from safe to risky. Each setting
generates answers, full depth scores them, and the walk ends where the risk is not proven to be low enough.
Depths: `capped` generates answers at each depth, and full depth scores them.
"""

from collections.abc import Callable

import msgspec
import numpy as np

from shard.exits.settings import Settings
from shard.quality.certificate import Basis, DepthAgreement, Guarantee, Setting
from shard.tune.calibration_prompts import Sample
from shard.tune.closed_loop import Outcome, Wanted, answer, measure
from shard.tune.costs import Costs, measure_costs
from shard.tune.learn_then_test import Bound, upper_bound, walk
from shard.tune.measurement_cache import MeasurementCache
from shard.tune.path import NEVER, Survey, Thresholds, declare_path
from shard.tune.survey import survey
from shard.tune.trials import Trials

BREACH_SHARE = 0.25  # share of tokens; reassessment reacts to twice as many


class Watch(msgspec.Struct, frozen=True):
    """Receives the progress."""

    begin: Callable[[str, int], Callable[[], object]]  # task, size -> a function to call at each step
    say: Callable[[str], None]


class Asked(msgspec.Struct, frozen=True):
    """What is to be proven, under which settings."""

    settings: Settings  # mode, fill and criterion to be served
    bound: Bound
    wanted: Wanted
    layers: list[int]  # of the exits


def speedup_bound(setting: Setting, survey: Survey, costs: Costs) -> float:
    """Upper bound of one row's speed-up over full depth, by costs and by the share of each exit."""
    leaving = [setting.coverage.get(votes.layer, 0.0) for votes in survey.votes]
    return survey.speedup_bound(setting.thresholds, leaving, costs)


class Calibration:
    """A calibration of a model's exits."""

    def __init__(self, asked: Asked, trials: Trials, sample: Sample, kept: MeasurementCache):
        self.asked = asked
        self.sample = sample
        self._trials = trials
        self._kept = kept

    def survey(self, watch: Watch) -> Survey:
        """The exits' votes on answers at full depth."""
        return self._kept.survey("survey", lambda: self._survey(watch))

    def walk(self, survey: Survey, costs: Costs, watch: Watch) -> list[Setting]:
        """Test the settings on the path, up to the first that fails."""
        path = declare_path(survey, len(self.sample.for_test), self.asked.bound, costs)
        outcomes: list[Outcome] = []

        def risks(thresholds: Thresholds) -> list[float]:
            name = f"setting {len(outcomes) + 1} of at most {len(path)}"
            outcome = self._kept.outcome(thresholds, lambda: self._try(thresholds, watch, name))
            watch.say(f"{name}: risk {outcome.mean_risk:.4f}, {outcome.expected_depth:.2f} layers a token")
            outcomes.append(outcome)
            return outcome.risks

        walked = walk(path, risks, self.asked.bound)
        return [
            Setting(thresholds, risk, p, outcome.coverage, outcome.expected_depth)
            for (thresholds, risk, p), outcome in zip(walked, outcomes, strict=True)
        ]

    def guarantee(self, curve: list[Setting], speed: Callable[[Setting], float], basis: Basis) -> Guarantee:
        """The guarantee of the fastest setting that passed, or of no early exit.

        The guarantee holds for all settings that passed simultaneously, so that any may be taken.
        """
        settings, bound = self.asked.settings, self.asked.bound
        passed = [step for step in curve if step.p_value <= bound.error]
        nobody = dict.fromkeys(self.asked.layers, NEVER)
        thresholds = max(passed, key=speed).thresholds if passed else nobody
        return Guarantee(
            settings.mode.value,
            settings.fill.value,
            settings.criterion.value,
            bound.risk,
            bound.confidence,
            thresholds,
            curve,
            basis,
        )

    def depths(self, basis: Basis, watch: Watch) -> tuple[list[DepthAgreement], Thresholds]:
        """Agreement at each exit's depth; all bounds hold together with the requested confidence.

        Also returns the confidence below which a token counts as a breach: `BREACH_SHARE` of tokens here, so
        that twice as many indicate other prompts.
        """
        bound, layers = self.asked.bound, self.asked.layers
        found, breach = [], {}
        for depth in layers:
            outcome = self._kept.outcome(["capped", depth], lambda depth=depth: self._cap(depth, watch))  # type: ignore[misc]
            risk = outcome.mean_risk
            most = upper_bound(risk, len(outcome.risks), bound.error / len(layers))
            watch.say(f"{depth} layers: agreement {1 - risk:.4f}")
            found.append(DepthAgreement(depth, 1 - risk, 1 - most, bound.confidence, basis))
            breach[depth] = round(float(np.quantile(outcome.confidences, BREACH_SHARE)), 6)
        return found, breach

    def costs(self) -> Costs:
        """Costs of layers and exits on this machine."""
        nobody = dict.fromkeys(self.asked.layers, NEVER)
        return self._kept.costs(lambda: measure_costs(self._trials.with_thresholds(nobody)))

    def _survey(self, watch: Watch) -> Survey:
        prompts = self.sample.for_survey
        advance = watch.begin("survey", 2 * len(prompts))
        answers = []
        for made, _ in answer(self._trials.full, prompts, self.asked.wanted):
            answers.append(made)
            advance()
        answers.sort(key=lambda made: made.number)
        runner = self._trials.with_thresholds(dict.fromkeys(self.asked.layers, NEVER))
        return survey(runner, self.asked.settings.criterion, answers, advance)

    def _try(self, thresholds: Thresholds, watch: Watch, name: str) -> Outcome:
        prompts = self.sample.for_test
        advance = watch.begin(name, 2 * len(prompts))
        runner = self._trials.with_thresholds(thresholds)
        return measure(runner, self._trials.full, prompts, self.asked.wanted, advance)

    def _cap(self, depth: int, watch: Watch) -> Outcome:
        prompts = self.sample.for_test
        advance = watch.begin(f"{depth} layers", 2 * len(prompts))
        return measure(
            self._trials.with_layers(depth), self._trials.full, prompts, self.asked.wanted, advance
        )
