"""The decision: stay, try a candidate, load more or fewer layers, change to another model, split the prompts.

Pure. In the order of urgency: what may not serve is left at once; a trial is brought to its end; too many
tokens under threshold are answered; and from time to time, or when traffic has shifted, all is weighed again.
"""

import math

import msgspec

from router.catalog.repository import Choice
from router.policy.choosing import better_split, choose
from router.policy.classes import lent, may_be_tried, unfit
from router.policy.decision import Decision, Kind, change, first_up, split_up, stay
from router.policy.eligibility import why_never
from router.policy.evaluation import affordable, change_ms, to_try
from router.policy.observation import Seen
from router.policy.splitting import best_split, serving_split, untried
from router.policy.weighing import Weighed, best_of_each, weigh


def decide(seen: Seen) -> Decision:
    """What to do now. The same for the same input."""
    weighed = weigh(seen)
    standing = seen.standing
    if standing.pinned:
        return stay(seen, f"{seen.serving} is pinned by {standing.pinned}.")
    if danger := unfit(seen):
        return _leave(seen, weighed, *danger)
    if standing.evaluation is not None:
        return _go_on_trying(seen, weighed)
    if standing.is_breached:
        return _answer_breach(seen, weighed)
    reason = _why_reassess(seen)
    return _reassess(seen, weighed, reason) if reason else stay(seen, "Nothing calls for a change.")


def _leave(seen: Seen, weighed: list[Weighed], bad: Choice, danger: str) -> Decision:
    """What serves may not: change to the best that may, if need be to one that is too slow."""
    able = [one for one in weighed if not one.why_not]
    able = able or [one for one in weighed if not why_never(seen, one.choice)]
    if not able:
        why = f"{bad} should not serve ({danger}), but nothing in the repository may."
        return stay(seen, why, weighed, serving_split(seen).shards if seen.split else ())
    chosen = min(able, key=lambda one: _price(seen, one))
    why = f"{bad} may not serve any longer: {danger}."
    if split := better_split(seen, chosen.as_cost):
        decision = split_up(seen, split, f"{why[:-1]}; from now on, it is {split}.", weighed)
        return msgspec.structs.replace(decision, is_elective=False)
    return change(seen, chosen.choice, why, weighed)


def _go_on_trying(seen: Seen, weighed: list[Weighed]) -> Decision:
    trial = seen.standing.evaluation
    assert trial is not None
    wanted = seen.repository.loop.evaluation_requests
    if trial.num_answered < wanted and may_be_tried(seen, trial.trying):
        why = f"{trial.trying} has answered {trial.num_answered} of {wanted} requests."
        return _evaluate(seen, (trial.trying, *trial.waiting), why)
    return _try(seen, trial.waiting, weighed, "Next to be tried") or choose(seen, weighed, "")


def _answer_breach(seen: Seen, weighed: list[Weighed]) -> Decision:
    """The cheaper of loading more layers and changing to another candidate (HELIOS, section 4.3).

    Of a split, what all can be served by.
    """
    loop, bad = seen.repository.loop, seen.standing.breaching or seen.serving
    breach = f"More than {loop.breach_limit} of {loop.breach_window} tokens left {bad} under threshold"
    deeper = [one for one in weighed if not one.why_not and _is_deeper(one.choice, bad)]
    others = [one for one in best_of_each(seen, weighed) if one.choice.candidate != bad.candidate]
    if not deeper and not others:
        shards = serving_split(seen).shards if seen.split else ()
        return stay(seen, f"{breach}, but nothing else may serve.", weighed, shards)
    chosen = min([*deeper, *others], key=lambda one: _price(seen, one)).choice
    return change(seen, chosen, f"{breach}: {chosen} is the cheapest way out.", weighed)


def _reassess(seen: Seen, weighed: list[Weighed], reason: str) -> Decision:
    best = best_of_each(seen, weighed)
    trials = affordable(seen, [*([] if seen.split else to_try(seen, best)), *_to_split_by(seen, best)])
    return _try(seen, trials, weighed, f"{reason}: to be tried") or choose(seen, weighed, reason)


def _to_split_by(seen: Seen, best: list[Weighed]) -> list[Choice]:
    """What is to be measured before the prompts are split, if that might be worth it at all."""
    split = best_split(seen)
    if split is None:
        return []
    now = [serving_split(seen).cost] if seen.split else [one.as_cost for one in best[:1]]
    bar = min((cost.most for cost in now), default=math.inf) * (1 - seen.repository.loop.hysteresis)
    return untried(seen, split) if split.cost.least < bar else []


def _try(seen: Seen, trials: tuple[Choice, ...], weighed: list[Weighed], reason: str) -> Decision | None:
    """Have the first tried that can be, and then the others."""
    able = tuple(choice for choice in trials if not seen.split or lent(seen, choice))
    if not able:
        return None
    return _evaluate(seen, able, f"{reason} is {able[0]}.", weighed)


def _evaluate(
    seen: Seen, trials: tuple[Choice, ...], why: str, weighed: list[Weighed] | None = None
) -> Decision:
    return Decision(
        kind=Kind.EVALUATE,
        choice=trials[0],
        why=first_up(why),
        considered=tuple(weighed or ()),
        waiting=trials[1:],
        shards=lent(seen, trials[0]) if seen.split else (),
    )


def _why_reassess(seen: Seen) -> str:
    standing, loop = seen.standing, seen.repository.loop
    if standing.drift:
        return standing.drift
    if standing.reassessed_at is None:
        return "The first requests were answered" if standing.num_requests >= loop.evaluation_requests else ""
    num_since = standing.num_requests - standing.reassessed_at
    return f"{num_since} requests were answered" if num_since >= loop.reassess_every else ""


def _price(seen: Seen, one: Weighed) -> float:
    """Of the next requests on it, with the change to it."""
    loop = seen.repository.loop
    changing = change_ms(seen, one.choice)
    if seen.repository.objective == "energy":
        changing *= (seen.device.watts or 1.0) / 1000
    return loop.amortise_over * one.cost + changing


def _is_deeper(choice: Choice, than: Choice) -> bool:
    return choice.candidate == than.candidate and choice.depth > than.depth
