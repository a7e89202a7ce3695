"""What shall serve, once all is known that is worth knowing: one choice, or a split. Pure."""

from router.policy.cost import Cost, is_same
from router.policy.decision import Decision, change, elective, split_up, stay
from router.policy.evaluation import change_ms
from router.policy.observation import Seen
from router.policy.resplitting import choose_from_split
from router.policy.splitting import Split, best_split, rearranging_ms
from router.policy.weighing import Weighed, best_of_each, find
from router.policy.worth import compared, spent, why_not_worth_it


def choose(seen: Seen, weighed: list[Weighed], reason: str) -> Decision:
    """Stay or change, as costs say and the budget of swaps allows."""
    after = f"{reason}: " if reason else ""
    if seen.split:
        return choose_from_split(seen, weighed, after)
    best = best_of_each(seen, weighed)
    split = better_split(seen, best[0].as_cost) if best else None
    if split is None or spent(seen):
        return _choose_one(seen, weighed, best, after)
    costs = compared(seen, split.cost, str(best[0].choice), best[0].as_cost)
    return split_up(seen, split, f"{after}{split} cost {costs}.", weighed)


def better_split(seen: Seen, than: Cost) -> Split | None:
    """The best split, if it is worth having in place of one choice for all, at that cost."""
    split = best_split(seen)
    if split is None or why_not_worth_it(seen, than, split.cost, rearranging_ms(seen, split.shards)):
        return None
    return split


def _choose_one(seen: Seen, weighed: list[Weighed], best: list[Weighed], after: str) -> Decision:
    """For all."""
    current = find(weighed, seen.serving)
    if not best or current is None or best[0].choice == seen.serving:
        return stay(seen, f"{after}{_why_best(seen, weighed)}", weighed)
    chosen = best[0]
    if current.why_not:
        why = f"{after}{current.why_not}, and {chosen.choice} has no such fault"
    elif doubt := why_not_worth_it(seen, current.as_cost, chosen.as_cost, change_ms(seen, chosen.choice)):
        return stay(seen, f"{after}{seen.serving} stays: {chosen.choice} would {doubt}.", weighed)
    else:
        costs = compared(seen, chosen.as_cost, str(seen.serving), current.as_cost)
        why = f"{after}{chosen.choice} costs {costs}"
    if limit := spent(seen):
        return stay(seen, f"{why}, {limit}.", weighed)
    return elective(change(seen, chosen.choice, f"{why}.", weighed))


def _why_best(seen: Seen, weighed: list[Weighed]) -> str:
    others = [one for one in weighed if not is_same(seen, one.choice, seen.serving)]
    if not others or any(not one.why_not for one in others):
        return f"{seen.serving} is the best that may serve."
    cheapest = min(others, key=lambda one: one.cost)
    return f"nothing but {seen.serving} may serve ({cheapest.choice}: {cheapest.why_not})."
