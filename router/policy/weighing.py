"""Every choice there is, with what it costs and what rules it out; the best depth of each candidate."""

import msgspec

from router.catalog.repository import Choice
from router.policy.cost import Cost, cost_of
from router.policy.eligibility import why_not
from router.policy.observation import Seen


class Weighed(msgspec.Struct, frozen=True):
    """A choice as it was weighed. `unit` is the cost's: ms of a shard, ms alone, or J, per mean request."""

    choice: Choice
    cost: float
    error: float  # by so much, as a share, the cost may be wrong
    why_not: str = ""  # "": it may serve
    prompts: str = ""  # of which class alone; "": of all

    @property
    def as_cost(self) -> Cost:
        return Cost(self.cost, self.error)

    def told(self, unit: str) -> dict[str, str | float]:
        """As the diary has it."""
        prompts: dict[str, str | float] = {"prompts": self.prompts} if self.prompts else {}
        return prompts | {
            "candidate": self.choice.candidate,
            "depth": self.choice.depth,
            "cost": round(self.cost, 3),
            "unit": unit,
            "error": round(self.error, 3),
            "ruled_out": self.why_not,
        }


def weigh(seen: Seen) -> list[Weighed]:
    """All choices of the repository, the cheapest first, those that may not serve last."""
    choices = [choice for facts in seen.facts.values() for choice in facts.choices]
    weighed = [_weighed(seen, choice) for choice in choices]
    return sorted(weighed, key=lambda one: (bool(one.why_not), one.cost, one.choice))


def best_of_each(seen: Seen, weighed: list[Weighed]) -> list[Weighed]:
    """Of each candidate that may serve, the depth to load: the greedy partial load. The cheapest first."""
    best: dict[str, Weighed] = {}
    for one in weighed:
        if not one.why_not and _is_deep_enough(seen, one.choice):
            best.setdefault(one.choice.candidate, one)
    return list(best.values())


def find(weighed: list[Weighed], choice: Choice) -> Weighed | None:
    return next((one for one in weighed if one.choice == choice), None)


def share_left_by(seen: Seen, choice: Choice) -> float | None:
    """Share of tokens sure enough to leave at or before a depth; None: not measured."""
    facts = seen.facts[choice.candidate]
    row = seen.row_of_any_prompts(choice)
    if row is not None and choice.depth < facts.num_layers and row.num_tokens:
        return 1 - row.breach_rate
    whole = seen.row_of_any_prompts(Choice(choice.candidate, facts.num_layers))
    total = sum(whole.exits.values()) if whole is not None else 0
    if whole is None or not total:
        return None
    return sum(count for layer, count in whole.exits.items() if layer <= choice.depth) / total


def _weighed(seen: Seen, choice: Choice) -> Weighed:
    cost: Cost = cost_of(seen, choice)
    return Weighed(choice, cost.amount, cost.error, why_not(seen, choice))


def _is_deep_enough(seen: Seen, choice: Choice) -> bool:
    """By the paper's rule, if that is set: as many tokens have left by there as `depth_share` says."""
    loop, facts = seen.repository.loop, seen.facts[choice.candidate]
    if loop.depth_by == "cost" or choice.depth == facts.num_layers:
        return True
    share = share_left_by(seen, choice)
    return share is None or share >= loop.depth_share
