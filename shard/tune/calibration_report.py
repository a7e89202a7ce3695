"""The report of a calibration: tables, and sentences on the guarantee."""

import msgspec
from rich.table import Table

from shard.quality.certificate import DepthAgreement, Guarantee, Setting
from shard.tune.calibration import speedup_bound
from shard.tune.costs import Costs
from shard.tune.learn_then_test import Bound, num_needed, upper_bound
from shard.tune.path import Survey, Votes


class Findings(msgspec.Struct, frozen=True):
    """The guarantee of thresholds, and its basis."""

    guarantee: Guarantee
    survey: Survey
    costs: Costs

    @property
    def bound(self) -> Bound:
        return Bound(self.guarantee.risk, self.guarantee.confidence)

    @property
    def chosen(self) -> Setting | None:
        """The setting that may be served; None if no early exit is allowed."""
        chosen = self.guarantee.thresholds
        return next((step for step in self.guarantee.curve if step.thresholds == chosen), None)

    @property
    def speedup_bound(self) -> float:
        """Upper bound of the chosen setting's speed-up for one row, by costs of layers and heads."""
        return 1.0 if self.chosen is None else speedup_bound(self.chosen, self.survey, self.costs)


def exit_table(found: Findings) -> Table:
    """A table of exits with their thresholds."""
    table = Table("exit layer", "threshold", "leave here", "agree, alone", "pays from", title="Exits")
    coverage = found.chosen.coverage if found.chosen else {}
    for i, votes in enumerate(found.survey.votes):
        threshold = found.guarantee.thresholds[votes.layer]
        table.add_row(
            str(votes.layer),
            f"{threshold:.4f}" if threshold < 1 else "never",
            f"{coverage.get(votes.layer, 0.0):.1%}",
            _agreement(votes, threshold),
            f"{found.costs.break_even(i):.1%}",
        )
    table.caption = (
        "agree, alone: of all tokens so sure at this exit, on the survey. pays from: of rows asked by its "
        "head, the share that has to leave"
    )
    return table


def _agreement(votes: Votes, threshold: float) -> str:
    leaving = votes.reached(threshold)
    return f"{votes.agrees[leaving].mean():.1%}" if leaving.any() else ""


def curve_table(guarantee: Guarantee) -> Table:
    """A table of the tested settings, from safe to risky."""
    table = Table("thresholds", "risk", "p-value", "safe at", "early", "layers a token", "", title="The walk")
    for step in guarantee.curve:
        error = 1 - guarantee.confidence
        safe_at = upper_bound(step.risk, guarantee.basis.num_sequences, error)
        early = 1 - step.coverage.get(max(step.coverage), 0.0)
        table.add_row(
            " ".join(f"{layer}: {threshold:.3f}" for layer, threshold in step.thresholds.items()),
            f"{step.risk:.4f}",
            f"{step.p_value:.2g}",
            f"{safe_at:.4f}",
            f"{early:.1%}",
            f"{step.expected_depth:.2f}",
            "passes" if step.p_value <= error else "fails",
        )
    table.caption = "safe at: the least --risk at which this setting alone would pass with the same answers"
    return table


def depth_table(depths: list[DepthAgreement], speedups: list[float]) -> Table:
    """A table of `capped` at each depth."""
    table = Table("layers", "agreement", "at least", "speed-up at most", title="Capped")
    for capped, speedup in zip(depths, speedups, strict=True):
        table.add_row(
            str(capped.depth), f"{capped.agreement:.4f}", f"{capped.lower_bound:.4f}", f"{speedup:.2f}"
        )
    return table


def sentences(found: Findings) -> list[str]:
    """Sentences: what is guaranteed, why not more, and how many more answers would change that."""
    guarantee, chosen = found.guarantee, found.chosen
    if not guarantee.curve:
        return [
            "No exit can be allowed: none is right often enough even where it is surest, so that nothing was "
            "left to test. Better heads are needed, or a higher --risk."
        ]
    last = guarantee.curve[-1]
    if chosen is None:
        return [
            f"No exit can be allowed at risk {guarantee.risk:g}: the safest setting on the path was seen at "
            f"{last.risk:.4f} (p = {last.p_value:.2g}).",
            _more(last, guarantee, found.bound),
        ]
    promise = (
        f"With confidence {guarantee.confidence:.0%}, at most {guarantee.risk:.1%} of tokens leave early and "
        f"are not full depth's, in {guarantee.mode} with {guarantee.fill} and {guarantee.criterion}: "
        f"{1 - chosen.coverage.get(found.survey.num_layers, 0.0):.1%} leave early, after "
        f"{chosen.expected_depth:.1f} of {found.survey.num_layers} layers a token."
    )
    said = [promise, _speed(found.speedup_bound)]
    if last.p_value > found.bound.error:
        said.append(
            f"The next setting, {last.expected_depth:.1f} layers a token, was seen at {last.risk:.4f}. "
            + _more(last, guarantee, found.bound)
        )
    return said


def _speed(bound: float) -> str:
    if bound < 1:
        return (
            f"It does not pay here for one row: layers and heads alone make it {bound:.2f} times as fast as "
            "full depth. A server falls back to full depth by itself."
        )
    return (
        f"By what layers and heads cost here, one row is at most {bound:.2f} times as fast as at full depth."
    )


def _more(failed: Setting, guarantee: Guarantee, bound: Bound) -> str:
    """A sentence on how many more sequences would let a setting pass."""
    needed = num_needed(failed.risk, bound)
    if needed is None:
        return "More sequences would not help: that risk is not below the bound."
    more = max(1, needed - guarantee.basis.num_sequences)
    return f"About {more} more sequences would let it pass, if its risk stays so (--num-sequences {needed})."
