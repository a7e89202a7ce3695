"""The decision: stay, try a candidate, load more or fewer layers, change to another model, split the prompts.

Pure. In order of urgency: leave a choice that may not serve; finish a trial; react to confidence breaches;
and periodically, or after a shift of traffic, compare all choices again.
"""

import math

import msgspec

from router.catalog.repository import Choice
from router.policy.choosing import better_split, choose
from router.policy.classes import may_be_tried, shards_for_trial, unfit
from router.policy.decision import Decision, DecisionKind, change, first_up, split_up, stay
from router.policy.eligibility import why_never
from router.policy.evaluation import affordable, change_ms, to_try
from router.policy.observation import Observation
from router.policy.splitting import best_split, serving_split, untried
from router.policy.weighing import Ranked, best_of_each, weigh


def decide(observation: Observation) -> Decision:
    """The decision for an observation; deterministic."""
    ranked = weigh(observation)
    counters = observation.counters
    if counters.pinned:
        return stay(observation, f"{observation.serving} is pinned by {counters.pinned}.")
    if danger := unfit(observation):
        return _leave(observation, ranked, *danger)
    if counters.evaluation is not None:
        return _go_on_trying(observation, ranked)
    if counters.is_breached:
        return _answer_breach(observation, ranked)
    reason = _why_reassess(observation)
    return (
        _reassess(observation, ranked, reason) if reason else stay(observation, "Nothing calls for a change.")
    )


def _leave(observation: Observation, ranked: list[Ranked], bad: Choice, danger: str) -> Decision:
    """Leave a served choice that may not serve for the best that may, if need be for one that is too slow."""
    able = [option for option in ranked if not option.why_not]
    able = able or [option for option in ranked if not why_never(observation, option.choice)]
    if not able:
        why = f"{bad} should not serve ({danger}), but nothing in the repository may."
        return stay(observation, why, ranked, serving_split(observation).shards if observation.split else ())
    chosen = min(able, key=lambda option: _price(observation, option))
    why = f"{bad} may not serve any longer: {danger}."
    if split := better_split(observation, chosen.as_cost):
        decision = split_up(observation, split, f"{why[:-1]}; from now on, it is {split}.", ranked)
        return msgspec.structs.replace(decision, is_elective=False)
    return change(observation, chosen.choice, why, ranked)


def _go_on_trying(observation: Observation, ranked: list[Ranked]) -> Decision:
    trial = observation.counters.evaluation
    assert trial is not None
    wanted = observation.repository.loop.evaluation_requests
    if trial.num_answered < wanted and may_be_tried(observation, trial.trying):
        why = f"{trial.trying} has answered {trial.num_answered} of {wanted} requests."
        return _evaluate(observation, (trial.trying, *trial.waiting), why)
    return _try(observation, trial.waiting, ranked, "Next to be tried") or choose(observation, ranked, "")


def _answer_breach(observation: Observation, ranked: list[Ranked]) -> Decision:
    """The cheaper of loading more layers and changing to another candidate (HELIOS, section 4.3).

    A split is left for one choice that can serve all prompts.
    """
    loop, bad = observation.repository.loop, observation.counters.breaching or observation.serving
    breach = f"More than {loop.breach_limit} of {loop.breach_window} tokens left {bad} under threshold"
    deeper = [option for option in ranked if not option.why_not and _is_deeper(option.choice, bad)]
    others = [
        option for option in best_of_each(observation, ranked) if option.choice.candidate != bad.candidate
    ]
    if not deeper and not others:
        shards = serving_split(observation).shards if observation.split else ()
        return stay(observation, f"{breach}, but nothing else may serve.", ranked, shards)
    chosen = min([*deeper, *others], key=lambda option: _price(observation, option)).choice
    return change(observation, chosen, f"{breach}: {chosen} is the cheapest way out.", ranked)


def _reassess(observation: Observation, ranked: list[Ranked], reason: str) -> Decision:
    best = best_of_each(observation, ranked)
    trials = affordable(
        observation,
        [*([] if observation.split else to_try(observation, best)), *_to_split_by(observation, best)],
    )
    return _try(observation, trials, ranked, f"{reason}: to be tried") or choose(observation, ranked, reason)


def _to_split_by(observation: Observation, best: list[Ranked]) -> list[Choice]:
    """Choices to measure before prompts are split, if a split may be worth it at all."""
    split = best_split(observation)
    if split is None:
        return []
    now = [serving_split(observation).cost] if observation.split else [option.as_cost for option in best[:1]]
    bar = min((cost.most for cost in now), default=math.inf) * (1 - observation.repository.loop.hysteresis)
    return untried(observation, split) if split.cost.least < bar else []


def _try(
    observation: Observation, trials: tuple[Choice, ...], ranked: list[Ranked], reason: str
) -> Decision | None:
    """Evaluate the first of `trials` that can be, then the others; None if none can."""
    able = tuple(
        choice for choice in trials if not observation.split or shards_for_trial(observation, choice)
    )
    if not able:
        return None
    return _evaluate(observation, able, f"{reason} is {able[0]}.", ranked)


def _evaluate(
    observation: Observation, trials: tuple[Choice, ...], why: str, ranked: list[Ranked] | None = None
) -> Decision:
    return Decision(
        kind=DecisionKind.EVALUATE,
        choice=trials[0],
        why=first_up(why),
        considered=tuple(ranked or ()),
        waiting=trials[1:],
        shards=shards_for_trial(observation, trials[0]) if observation.split else (),
    )


def _why_reassess(observation: Observation) -> str:
    counters, loop = observation.counters, observation.repository.loop
    if counters.drift:
        return counters.drift
    if counters.reassessed_at is None:
        return "The first requests were answered" if counters.num_requests >= loop.evaluation_requests else ""
    num_since = counters.num_requests - counters.reassessed_at
    return f"{num_since} requests were answered" if num_since >= loop.reassess_every else ""


def _price(observation: Observation, option: Ranked) -> float:
    """Cost of changing to an option and serving the next requests on it."""
    loop = observation.repository.loop
    changing = change_ms(observation, option.choice)
    if observation.repository.objective == "energy":
        changing *= (observation.device.watts or 1.0) / 1000
    return loop.amortise_over * option.cost + changing


def _is_deeper(choice: Choice, than: Choice) -> bool:
    return choice.candidate == than.candidate and choice.depth > than.depth
