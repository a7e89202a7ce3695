"""What shall serve, once all is known that is worth knowing: one choice, or a split. Pure."""

from router.policy.cost import Cost, is_same
from router.policy.decision import Decision, change, elective, split_up, stay
from router.policy.evaluation import change_ms
from router.policy.observation import Seen
from router.policy.splitting import Split, best_split, rearranging_ms, serving_split
from router.policy.weighing import Weighed, best_of_each, compared, find, spent, why_not_worth_it

_PATIENCE = 2.0  # to share out anew, since shares of classes waver


def choose(seen: Seen, weighed: list[Weighed], reason: str) -> Decision:
    """Stay or change, as costs say and the budget of swaps allows."""
    after = f"{reason}: " if reason else ""
    if seen.split:
        return _choose_from_split(seen, weighed, after)
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


def _choose_from_split(seen: Seen, weighed: list[Weighed], after: str) -> Decision:
    """The cheaper of the best split and the best choice for all, if it is worth the change."""
    now, split = serving_split(seen), best_split(seen)
    single = next(iter(best_of_each(seen, weighed)), None)
    if split is not None and (single is None or split.cost.amount <= single.cost):
        decision = _split_otherwise(seen, weighed, now, split, after)
    elif single is not None:
        decision = _unite(seen, weighed, now, single, after)
    else:
        return stay(seen, f"{after}{now} stays: nothing else may serve.", weighed, now.shards)
    if decision.is_elective and (limit := spent(seen)):
        return stay(seen, f"{decision.why[:-1]}, {limit}.", weighed, now.shards)
    return decision


def _split_otherwise(seen: Seen, weighed: list[Weighed], now: Split, split: Split, after: str) -> Decision:
    if split.choices == seen.split:
        return _share_out_anew(seen, weighed, now, split, after)
    if now.why_not:
        return split_up(seen, split, f"{after}{now.why_not}, and {split} has no such fault.", weighed)
    if doubt := why_not_worth_it(seen, now.cost, split.cost, rearranging_ms(seen, split.shards)):
        return stay(seen, f"{after}{now} stays: {split} would {doubt}.", weighed, now.shards)
    costs = compared(seen, split.cost, str(now), now.cost)
    return split_up(seen, split, f"{after}{split} costs {costs}.", weighed)


def _share_out_anew(seen: Seen, weighed: list[Weighed], now: Split, split: Split, after: str) -> Decision:
    changing_ms = rearranging_ms(seen, split.shards)
    is_sure = bool(seen.demand.steady_mix)
    if not is_sure or why_not_worth_it(seen, now.cost, split.cost, changing_ms, _PATIENCE):
        return stay(seen, f"{after}{now} is the best that may serve.", weighed, now.shards)
    costs = compared(seen, split.cost, f"to have {now.spread}", now.cost)
    return split_up(seen, split, f"{after}to have {split.spread} costs {costs}.", weighed)


def _unite(seen: Seen, weighed: list[Weighed], now: Split, single: Weighed, after: str) -> Decision:
    """Have one choice serve all again, if only since prompts are of one class."""
    new, chosen = single.as_cost, single.choice
    if best_split(seen) is None:
        why = f"there is no use any more in telling prompts apart: {chosen} for all"
    elif now.why_not:
        why = f"{now.why_not}, and {chosen} has no such fault"
    elif doubt := why_not_worth_it(seen, now.cost, new, rearranging_ms(seen, (chosen,) * len(now.shards))):
        return stay(seen, f"{after}{now} stays: {chosen} for all would {doubt}.", weighed, now.shards)
    else:
        why = f"{chosen} for all costs {compared(seen, new, str(now), now.cost)}"
    return elective(change(seen, chosen, f"{after}{why}.", weighed))
