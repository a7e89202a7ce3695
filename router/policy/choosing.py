"""Chooses what shall serve once all trials are done: one choice, or a split. Pure."""

from router.policy.cost import Cost, is_same
from router.policy.decision import Decision, change, elective, split_up, stay
from router.policy.evaluation import change_ms
from router.policy.observation import Observation
from router.policy.splitting import Split, best_split, rearranging_ms, serving_split
from router.policy.weighing import Ranked, best_of_each, compared, find, spent, why_not_worth_it

_REBALANCE_MARGIN = 2.0  # gain needed to rearrange a split, since shares of classes fluctuate


def choose(observation: Observation, ranked: list[Ranked], reason: str) -> Decision:
    """Stay or change, by cost and the budget of swaps."""
    after = f"{reason}: " if reason else ""
    if observation.split:
        return _choose_from_split(observation, ranked, after)
    best = best_of_each(observation, ranked)
    split = better_split(observation, best[0].as_cost) if best else None
    if split is None or spent(observation):
        return _choose_one(observation, ranked, best, after)
    costs = compared(observation, split.cost, str(best[0].choice), best[0].as_cost)
    return split_up(observation, split, f"{after}{split} cost {costs}.", ranked)


def better_split(observation: Observation, than: Cost) -> Split | None:
    """The best split, if it is worth replacing one choice for all at cost `than`."""
    split = best_split(observation)
    if split is None or why_not_worth_it(
        observation, than, split.cost, rearranging_ms(observation, split.shards)
    ):
        return None
    return split


def _choose_one(observation: Observation, ranked: list[Ranked], best: list[Ranked], after: str) -> Decision:
    """Decide while one choice serves all prompts."""
    current = find(ranked, observation.serving)
    if not best or current is None or best[0].choice == observation.serving:
        return stay(observation, f"{after}{_why_best(observation, ranked)}", ranked)
    chosen = best[0]
    if current.why_not:
        why = f"{after}{current.why_not}, and {chosen.choice} has no such fault"
    elif doubt := why_not_worth_it(
        observation, current.as_cost, chosen.as_cost, change_ms(observation, chosen.choice)
    ):
        return stay(
            observation, f"{after}{observation.serving} stays: {chosen.choice} would {doubt}.", ranked
        )
    else:
        costs = compared(observation, chosen.as_cost, str(observation.serving), current.as_cost)
        why = f"{after}{chosen.choice} costs {costs}"
    if limit := spent(observation):
        return stay(observation, f"{why}, {limit}.", ranked)
    return elective(change(observation, chosen.choice, f"{why}.", ranked))


def _why_best(observation: Observation, ranked: list[Ranked]) -> str:
    others = [option for option in ranked if not is_same(observation, option.choice, observation.serving)]
    if not others or any(not option.why_not for option in others):
        return f"{observation.serving} is the best that may serve."
    cheapest = min(others, key=lambda option: option.cost)
    return f"nothing but {observation.serving} may serve ({cheapest.choice}: {cheapest.why_not})."


def _choose_from_split(observation: Observation, ranked: list[Ranked], after: str) -> Decision:
    """Decide while a split serves: the cheaper of the best split and choice, if worth the change."""
    now, split = serving_split(observation), best_split(observation)
    single = next(iter(best_of_each(observation, ranked)), None)
    if split is not None and (single is None or split.cost.amount <= single.cost):
        decision = _split_otherwise(observation, ranked, now, split, after)
    elif single is not None:
        decision = _unite(observation, ranked, now, single, after)
    else:
        return stay(observation, f"{after}{now} stays: nothing else may serve.", ranked, now.shards)
    if decision.is_elective and (limit := spent(observation)):
        return stay(observation, f"{decision.why[:-1]}, {limit}.", ranked, now.shards)
    return decision


def _split_otherwise(
    observation: Observation, ranked: list[Ranked], now: Split, split: Split, after: str
) -> Decision:
    if split.choices == observation.split:
        return _share_out_anew(observation, ranked, now, split, after)
    if now.why_not:
        return split_up(observation, split, f"{after}{now.why_not}, and {split} has no such fault.", ranked)
    if doubt := why_not_worth_it(
        observation, now.cost, split.cost, rearranging_ms(observation, split.shards)
    ):
        return stay(observation, f"{after}{now} stays: {split} would {doubt}.", ranked, now.shards)
    costs = compared(observation, split.cost, str(now), now.cost)
    return split_up(observation, split, f"{after}{split} costs {costs}.", ranked)


def _share_out_anew(
    observation: Observation, ranked: list[Ranked], now: Split, split: Split, after: str
) -> Decision:
    changing_ms = rearranging_ms(observation, split.shards)
    is_sure = bool(observation.demand.steady_mix)
    if not is_sure or why_not_worth_it(observation, now.cost, split.cost, changing_ms, _REBALANCE_MARGIN):
        return stay(observation, f"{after}{now} is the best that may serve.", ranked, now.shards)
    costs = compared(observation, split.cost, f"to have {now.spread}", now.cost)
    return split_up(observation, split, f"{after}to have {split.spread} costs {costs}.", ranked)


def _unite(
    observation: Observation, ranked: list[Ranked], now: Split, single: Ranked, after: str
) -> Decision:
    """Replace a split by one choice for all, also when prompts are of one class only."""
    new, chosen = single.as_cost, single.choice
    if best_split(observation) is None:
        why = f"there is no use any more in telling prompts apart: {chosen} for all"
    elif now.why_not:
        why = f"{now.why_not}, and {chosen} has no such fault"
    elif doubt := why_not_worth_it(
        observation, now.cost, new, rearranging_ms(observation, (chosen,) * len(now.shards))
    ):
        return stay(observation, f"{after}{now} stays: {chosen} for all would {doubt}.", ranked, now.shards)
    else:
        why = f"{chosen} for all costs {compared(observation, new, str(now), now.cost)}"
    return elective(change(observation, chosen, f"{after}{why}.", ranked))
