"""Ranks all choices by cost and eligibility, and decides whether a change pays. Pure."""

import msgspec

from router.catalog.repository import Choice
from router.policy.cost import Cost, cost_of
from router.policy.eligibility import why_not
from router.policy.observation import Observation

UNITS = {"throughput": "ms of a shard", "latency": "ms alone", "energy": "J"}


class Ranked(msgspec.Struct, frozen=True):
    """A ranked choice. `unit` of the cost: ms of a shard, ms of a request alone, or J, per mean request."""

    choice: Choice
    cost: float
    error: float  # relative error of the cost
    why_not: str = ""  # "": it may serve
    prompts: str = ""  # ranked for this class alone; "": for all

    @property
    def as_cost(self) -> Cost:
        return Cost(self.cost, self.error)

    def audit_entry(self, unit: str) -> dict[str, str | float]:
        """The entry for the audit log."""
        prompts: dict[str, str | float] = {"prompts": self.prompts} if self.prompts else {}
        return prompts | {
            "candidate": self.choice.candidate,
            "depth": self.choice.depth,
            "cost": round(self.cost, 3),
            "unit": unit,
            "error": round(self.error, 3),
            "ruled_out": self.why_not,
        }


def weigh(observation: Observation) -> list[Ranked]:
    """All choices, the cheapest first, ineligible ones last."""
    choices = [choice for profile in observation.profiles.values() for choice in profile.choices]
    ranked = [_ranked(observation, choice) for choice in choices]
    return sorted(ranked, key=lambda option: (bool(option.why_not), option.cost, option.choice))


def best_of_each(observation: Observation, ranked: list[Ranked]) -> list[Ranked]:
    """The best depth of each eligible candidate (the greedy partial load), the cheapest first."""
    best: dict[str, Ranked] = {}
    for option in ranked:
        if not option.why_not and _is_deep_enough(observation, option.choice):
            best.setdefault(option.choice.candidate, option)
    return list(best.values())


def find(ranked: list[Ranked], choice: Choice) -> Ranked | None:
    return next((option for option in ranked if option.choice == choice), None)


def share_left_by(observation: Observation, choice: Choice) -> float | None:
    """Share of tokens confident enough to exit at or before a depth; None: not measured."""
    profile = observation.profiles[choice.candidate]
    row = observation.row_of_any_prompts(choice)
    if row is not None and choice.depth < profile.num_layers and row.num_tokens:
        return 1 - row.breach_rate
    whole = observation.row_of_any_prompts(Choice(choice.candidate, profile.num_layers))
    total = sum(whole.exits.values()) if whole is not None else 0
    if whole is None or not total:
        return None
    return sum(count for layer, count in whole.exits.items() if layer <= choice.depth) / total


def why_not_worth_it(
    observation: Observation, current: Cost, new: Cost, changing_ms: float, patience: float = 1.0
) -> str:
    """The reason against a cheaper choice, after "it would"; "" if none. `patience` scales the hysteresis."""
    loop = observation.repository.loop
    if new.most > current.least * (1 - patience * loop.hysteresis):
        share = new.amount / max(1e-12, current.amount)
        return f"cost {share:.0%} of it, too little less to be sure"
    if observation.repository.objective == "energy":
        return ""
    if (current.amount - new.amount) * loop.amortise_over < changing_ms:
        return f"not win back the time of the swap in {loop.amortise_over} requests"
    return ""


def spent(observation: Observation) -> str:
    """The reason if the budget of swaps is used up; "" otherwise."""
    loop, counters = observation.repository.loop, observation.counters
    window = loop.swap_window * counters.num_shards
    late = [at for at in counters.swapped_at if counters.num_requests - at < window]
    if len(late) < loop.max_swaps:
        return ""
    return f"but there have been {loop.max_swaps} swaps of late: not another one"


def compared(observation: Observation, new: Cost, name: str, old: Cost) -> str:
    """A comparison in words: the new cost per request, and the cost `old` of `name`."""
    return f"{new.amount:.3g} {unit(observation)} a request, {name} {old.amount:.3g}"


def unit(observation: Observation) -> str:
    """Unit of costs."""
    return UNITS[observation.repository.objective]


def _ranked(observation: Observation, choice: Choice) -> Ranked:
    cost: Cost = cost_of(observation, choice)
    return Ranked(choice, cost.amount, cost.error, why_not(observation, choice))


def _is_deep_enough(observation: Observation, choice: Choice) -> bool:
    """By the paper's rule, if enabled: `depth_share` of the tokens exit at or before the depth."""
    loop, profile = observation.repository.loop, observation.profiles[choice.candidate]
    if loop.depth_by == "cost" or choice.depth == profile.num_layers:
        return True
    share = share_left_by(observation, choice)
    return share is None or share >= loop.depth_share
