"""The decision: stay, try a candidate, load more or fewer layers, or change to another model. Pure.

In the order of urgency: what may not serve is left at once; a trial is brought to its end; too many tokens
under threshold are answered; and from time to time, or when traffic has shifted, all is weighed again.
"""

import enum

import msgspec

from router.policy.admission import why_never
from router.policy.cost import is_same
from router.policy.seen import Seen
from router.policy.trying import change_ms, to_try
from router.policy.weighing import Weighed, best_of_each, find, weigh
from router.repository import Choice

UNITS = {"throughput": "ms of a shard", "latency": "ms alone", "energy": "J"}


class Kind(enum.StrEnum):
    STAY = "stay"
    EVALUATE = "evaluate"  # try it on live requests
    DEEPEN = "deepen"  # more layers of what serves
    LIGHTEN = "lighten"  # fewer
    SWITCH = "switch"  # another candidate


class Decision(msgspec.Struct, frozen=True, kw_only=True):
    """What to do, and why. `choice` is what shall serve from now on; of `evaluate`, what shall be tried."""

    kind: Kind
    choice: Choice
    why: str  # a sentence for a person
    considered: tuple[Weighed, ...] = ()
    waiting: tuple[Choice, ...] = ()  # to be tried after it
    is_elective: bool = False  # things were well enough: it counts against the budget of swaps

    @property
    def settles(self) -> bool:
        """All was weighed and nothing is to be tried: it counts as a reassessment."""
        return bool(self.considered) and self.kind is not Kind.EVALUATE


def decide(seen: Seen) -> Decision:
    """What to do now. The same for the same input."""
    weighed = weigh(seen)
    standing = seen.standing
    if standing.pinned:
        return _stay(seen, f"{seen.serving} is pinned by {standing.pinned}.")
    if danger := why_never(seen, seen.serving):
        return _leave(seen, weighed, danger)
    if standing.evaluation is not None:
        return _go_on_trying(seen, weighed)
    if standing.is_breached:
        return _answer_breach(seen, weighed)
    reason = _why_reassess(seen)
    return _reassess(seen, weighed, reason) if reason else _stay(seen, "Nothing calls for a change.")


def _leave(seen: Seen, weighed: list[Weighed], danger: str) -> Decision:
    """What serves may not: change to the best that may, if need be to one that is too slow."""
    able = [one for one in weighed if not one.why_not]
    able = able or [one for one in weighed if not why_never(seen, one.choice)]
    if not able:
        why = f"{_capital(seen.serving)} should not serve ({danger}), but nothing in the repository may."
        return _stay(seen, why, weighed)
    chosen = min(able, key=lambda one: _price(seen, one))
    why = f"{_capital(seen.serving)} may not serve any longer: {danger}."
    return _change(seen, chosen, why, weighed)


def _go_on_trying(seen: Seen, weighed: list[Weighed]) -> Decision:
    trial = seen.standing.evaluation
    assert trial is not None
    wanted = seen.repository.loop.evaluation_requests
    if trial.num_answered < wanted and not why_never(seen, trial.trying):
        why = f"{_capital(trial.trying)} has answered {trial.num_answered} of {wanted} requests."
        return Decision(kind=Kind.EVALUATE, choice=trial.trying, why=why, waiting=trial.waiting)
    return _try(trial.waiting, weighed, "Next to be tried") if trial.waiting else _choose(seen, weighed, "")


def _answer_breach(seen: Seen, weighed: list[Weighed]) -> Decision:
    """The cheaper of loading more layers and changing to another candidate (HELIOS, section 4.3)."""
    loop, serving = seen.repository.loop, seen.serving
    breach = f"More than {loop.breach_limit} of {loop.breach_window} tokens left {serving} under threshold"
    deeper = [one for one in weighed if not one.why_not and _is_deeper(one.choice, serving)]
    others = [one for one in best_of_each(seen, weighed) if one.choice.candidate != serving.candidate]
    if not deeper and not others:
        return _stay(seen, f"{breach}, but nothing else may serve.", weighed)
    chosen = min([*deeper, *others], key=lambda one: _price(seen, one))
    return _change(seen, chosen, f"{breach}: {chosen.choice} is the cheapest way out.", weighed)


def _reassess(seen: Seen, weighed: list[Weighed], reason: str) -> Decision:
    trials = to_try(seen, best_of_each(seen, weighed))
    return _try(trials, weighed, f"{reason}: to be tried") if trials else _choose(seen, weighed, reason)


def _try(trials: tuple[Choice, ...], weighed: list[Weighed], reason: str) -> Decision:
    first, *others = trials
    return Decision(
        kind=Kind.EVALUATE,
        choice=first,
        why=f"{reason} is {first}.",
        considered=tuple(weighed),
        waiting=tuple(others),
    )


def _choose(seen: Seen, weighed: list[Weighed], reason: str) -> Decision:
    """What shall serve, after all is known that is worth knowing."""
    after = f"{reason}: " if reason else ""
    current = find(weighed, seen.serving)
    best = best_of_each(seen, weighed)
    if not best or current is None or best[0].choice == seen.serving:
        return _stay(seen, f"{after}{_why_best(seen, weighed)}", weighed)
    chosen = best[0]
    if current.why_not:
        doubt = f"{after}{current.why_not}, and {chosen.choice} has no such fault"
    elif doubt := _why_not_worth_it(seen, current, chosen):
        return _stay(seen, f"{after}{seen.serving} stays: {doubt}.", weighed)
    else:
        costs = f"{chosen.cost:.3g} {UNITS[seen.repository.objective]}"
        doubt = f"{after}{chosen.choice} costs {costs} a request, {seen.serving} {current.cost:.3g}"
    if _is_spent(seen):
        why = f"{doubt}, but there have been {seen.repository.loop.max_swaps} swaps of late: not another one."
        return _stay(seen, why, weighed)
    change = _change(seen, chosen, f"{_first_up(doubt)}.", weighed)
    return msgspec.structs.replace(change, is_elective=True)


def _why_best(seen: Seen, weighed: list[Weighed]) -> str:
    others = [one for one in weighed if not is_same(seen, one.choice, seen.serving)]
    if not others or any(not one.why_not for one in others):
        return f"{seen.serving} is the best that may serve."
    cheapest = min(others, key=lambda one: one.cost)
    return f"nothing but {seen.serving} may serve ({cheapest.choice}: {cheapest.why_not})."


def _why_not_worth_it(seen: Seen, current: Weighed, chosen: Weighed) -> str:
    """What speaks against changing to something cheaper; "": nothing."""
    loop = seen.repository.loop
    if chosen.most_cost > current.least_cost * (1 - loop.hysteresis):
        share = chosen.cost / current.cost
        return f"{chosen.choice} would cost {share:.0%} of it, too little less to be sure"
    if seen.repository.objective == "energy":
        return ""
    if (current.cost - chosen.cost) * loop.amortise_over < change_ms(seen, chosen.choice):
        return f"{chosen.choice} would not win back the time of the swap in {loop.amortise_over} requests"
    return ""


def _why_reassess(seen: Seen) -> str:
    standing, loop = seen.standing, seen.repository.loop
    if standing.drift:
        return standing.drift
    if standing.reassessed_at is None:
        return "The first requests were answered" if standing.num_requests >= loop.evaluation_requests else ""
    num_since = standing.num_requests - standing.reassessed_at
    return f"{num_since} requests were answered" if num_since >= loop.reassess_every else ""


def _is_spent(seen: Seen) -> bool:
    """The budget of swaps."""
    loop, standing = seen.repository.loop, seen.standing
    window = loop.swap_window * standing.num_shards
    late = [at for at in standing.swapped_at if standing.num_requests - at < window]
    return len(late) >= loop.max_swaps


def _price(seen: Seen, one: Weighed) -> float:
    """Of the next requests on it, with the change to it."""
    loop = seen.repository.loop
    change = change_ms(seen, one.choice)
    if seen.repository.objective == "energy":
        change *= (seen.device.watts or 1.0) / 1000
    return loop.amortise_over * one.cost + change


def _is_deeper(choice: Choice, than: Choice) -> bool:
    return choice.candidate == than.candidate and choice.depth > than.depth


def _stay(seen: Seen, why: str, weighed: list[Weighed] | None = None) -> Decision:
    return Decision(
        kind=Kind.STAY,
        choice=seen.serving,
        why=_first_up(why),
        considered=tuple(weighed or ()),
    )


def _change(seen: Seen, chosen: Weighed, why: str, weighed: list[Weighed]) -> Decision:
    choice, serving = chosen.choice, seen.serving
    if choice.candidate != serving.candidate:
        kind = Kind.SWITCH
    else:
        kind = Kind.DEEPEN if choice.depth > serving.depth else Kind.LIGHTEN
    return Decision(kind=kind, choice=choice, why=why, considered=tuple(weighed))


def _capital(choice: Choice) -> str:
    return _first_up(str(choice))


def _first_up(sentence: str) -> str:
    return sentence[:1].upper() + sentence[1:]
