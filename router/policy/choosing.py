"""What shall serve, once all is known that is worth knowing: one choice, or a split. Pure."""

import msgspec

from router.policy.cost import Cost, is_same
from router.policy.decision import UNITS, Decision, Kind, change, first_up, stay
from router.policy.seen import Seen
from router.policy.splitting import Split, best_split, rearranging_ms, serving_split
from router.policy.trying import change_ms
from router.policy.weighing import Weighed, best_of_each, find


def choose(seen: Seen, weighed: list[Weighed], reason: str) -> Decision:
    """Stay or change, as costs say and the budget of swaps allows."""
    after = f"{reason}: " if reason else ""
    best = best_of_each(seen, weighed)
    if seen.split:
        return _choose_from_split(seen, weighed, after)
    split = better_split(seen, best[0].as_cost) if best else None
    if split is not None and not _is_spent(seen):
        return split_up(seen, split, f"{after}{split} cost {_than(seen, split.cost, best[0])}.", weighed)
    current = find(weighed, seen.serving)
    if not best or current is None or best[0].choice == seen.serving:
        return stay(seen, f"{after}{_why_best(seen, weighed)}", weighed)
    chosen = best[0]
    if current.why_not:
        doubt = f"{after}{current.why_not}, and {chosen.choice} has no such fault"
    elif doubt := _why_not_worth_it(seen, current.as_cost, chosen.as_cost, change_ms(seen, chosen.choice)):
        return stay(seen, f"{after}{seen.serving} stays: {chosen.choice} would {doubt}.", weighed)
    else:
        doubt = f"{after}{chosen.choice} costs {_than(seen, chosen.as_cost, current)}"
    if _is_spent(seen):
        return stay(seen, f"{doubt}, {_spent(seen)}", weighed)
    return _elective(change(seen, chosen.choice, f"{doubt}.", weighed))


def better_split(seen: Seen, than: Cost) -> Split | None:
    """The best split, if it is worth having in place of one choice for all, at that cost."""
    split = best_split(seen)
    if split is None or _why_not_worth_it(seen, than, split.cost, rearranging_ms(seen, split.shards)):
        return None
    return split


def split_up(seen: Seen, split: Split, why: str, weighed: list[Weighed]) -> Decision:
    """Have each class of prompts served by its own choice."""
    counts = {choice: split.shards.count(choice) for choice in split.choices.values()}
    return _elective(
        Decision(
            kind=Kind.SPLIT,
            choice=max(sorted(counts), key=counts.__getitem__),
            why=first_up(why),
            considered=(*weighed, *split.considered),
            split=split.choices,
            shards=split.shards,
        )
    )


def _choose_from_split(seen: Seen, weighed: list[Weighed], after: str) -> Decision:
    """Keep it, have another one, or go back to one choice for all."""
    now, split = serving_split(seen), best_split(seen)
    single = next(iter(best_of_each(seen, weighed)), None)
    if split is not None and (single is None or split.cost.amount <= single.cost):
        new, shards, name = split.cost, split.shards, str(split)
    elif single is not None:
        new, shards, name = single.as_cost, (single.choice,) * len(seen.shards), f"{single.choice} for all"
    else:
        return stay(seen, f"{after}nothing but {now} may serve.", weighed, now.shards)
    if split is None:
        doubt = f"{after}there is no use any more in telling prompts apart: {name}"
    elif now.why_not:
        doubt = f"{after}{now.why_not}, and {name} has no such fault"
    elif split.choices == seen.split and shards == now.shards:
        return stay(seen, f"{after}{now} is the best that may serve.", weighed, now.shards)
    elif doubt := _why_not_worth_it(seen, now.cost, new, rearranging_ms(seen, shards)):
        return stay(seen, f"{after}{now} stays: {name} would {doubt}.", weighed, now.shards)
    else:
        unit = UNITS[seen.repository.objective]
        doubt = f"{after}{name} costs {new.amount:.3g} {unit} a request, {now} {now.cost.amount:.3g}"
    if _is_spent(seen):
        return stay(seen, f"{doubt}, {_spent(seen)}", weighed, now.shards)
    if split is not None and shards == split.shards:
        return split_up(seen, split, f"{doubt}.", weighed)
    assert single is not None
    return _elective(change(seen, single.choice, f"{doubt}.", weighed))


def _elective(decision: Decision) -> Decision:
    return msgspec.structs.replace(decision, is_elective=True)


def _than(seen: Seen, cost: Cost, other: Weighed) -> str:
    unit = UNITS[seen.repository.objective]
    return f"{cost.amount:.3g} {unit} a request, {other.choice} {other.cost:.3g}"


def _why_best(seen: Seen, weighed: list[Weighed]) -> str:
    others = [one for one in weighed if not is_same(seen, one.choice, seen.serving)]
    if not others or any(not one.why_not for one in others):
        return f"{seen.serving} is the best that may serve."
    cheapest = min(others, key=lambda one: one.cost)
    return f"nothing but {seen.serving} may serve ({cheapest.choice}: {cheapest.why_not})."


def _why_not_worth_it(seen: Seen, current: Cost, new: Cost, changing_ms: float) -> str:
    """What speaks against changing to something cheaper: it would ...; "": nothing."""
    loop = seen.repository.loop
    if new.most > current.least * (1 - loop.hysteresis):
        share = new.amount / max(1e-12, current.amount)
        return f"cost {share:.0%} of it, too little less to be sure"
    if seen.repository.objective == "energy":
        return ""
    if (current.amount - new.amount) * loop.amortise_over < changing_ms:
        return f"not win back the time of the swap in {loop.amortise_over} requests"
    return ""


def _is_spent(seen: Seen) -> bool:
    """The budget of swaps."""
    loop, standing = seen.repository.loop, seen.standing
    window = loop.swap_window * standing.num_shards
    late = [at for at in standing.swapped_at if standing.num_requests - at < window]
    return len(late) >= loop.max_swaps


def _spent(seen: Seen) -> str:
    return f"but there have been {seen.repository.loop.max_swaps} swaps of late: not another one."
