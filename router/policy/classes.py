"""Views of the traffic by class of prompts, for the classes that count. Pure."""

import msgspec

from router.catalog.repository import Choice
from router.policy.eligibility import keeps_floor, why_never
from router.policy.observation import Demand, Observation


def single_class_view(observation: Observation, name: str) -> Observation:
    """The observation as if all prompts were of one class, served by that class's choice."""
    demand = msgspec.structs.replace(observation.demand, mix={name: 1.0})
    view = msgspec.structs.replace(observation, demand=demand, split={})
    if not observation.split:
        return view
    able = (choice for choice in sorted(observation.served) if keeps_floor(view, choice))
    serving = observation.split.get(name) or next(able, observation.serving)
    return msgspec.structs.replace(view, serving=serving)


def admitted(observation: Observation) -> dict[str, frozenset[Choice]]:
    """For each class that counts, the choices that keep the floor. {} with a single shard."""
    if len(observation.shards) < 2:
        return {}
    choices = [choice for profile in observation.profiles.values() for choice in profile.choices]
    views = {name: single_class_view(observation, name) for name in observation.counted}
    return {
        name: frozenset(choice for choice in choices if keeps_floor(view, choice))
        for name, view in views.items()
    }


def classes_excluded_by(observation: Observation, choice: Choice) -> frozenset[str]:
    """Classes that count and go to other shards, because the choice fails the floor for them."""
    return frozenset(name for name, able in admitted(observation).items() if choice not in able)


def demand_for(observation: Observation, choice: Choice) -> Demand:
    """The demand of the prompts sent to a shard with this choice."""
    excluded_classes = classes_excluded_by(observation, choice)
    own = {name: share for name, share in observation.demand.mix.items() if name not in excluded_classes}
    total = sum(own.values())
    if not excluded_classes or not total:
        return observation.demand
    return msgspec.structs.replace(
        observation.demand, mix={name: share / total for name, share in own.items()}
    )


def may_be_tried(observation: Observation, choice: Choice) -> bool:
    """The choice may serve all prompts, or those of one class on a shard of its own."""
    views = (
        [single_class_view(observation, name) for name in observation.counted]
        if len(observation.shards) > 1
        else []
    )
    return any(not why_never(view, choice) for view in (observation, *views))


def unfit(observation: Observation) -> tuple[Choice, str] | None:
    """A served choice that may not serve, and why; None if there is none."""
    views = (
        [single_class_view(observation, name) for name in observation.counted]
        if observation.split
        else [observation]
    )
    found = ((view.serving, why_never(view, view.serving)) for view in views)
    return next((served for served in found if served[1]), None)


def shards_for_trial(observation: Observation, trying: Choice) -> tuple[Choice, ...]:
    """The choices of a split's shards while one of them evaluates; () if no shard can be spared.

    Every class that counts keeps a shard that is good enough for it.
    """
    if trying in observation.shards:
        return observation.shards
    able = admitted(observation).values()
    for choice in sorted(set(observation.shards), key=lambda choice: (choice in observation.served, choice)):
        index = len(observation.shards) - 1 - observation.shards[::-1].index(choice)
        shards = (*observation.shards[:index], trying, *observation.shards[index + 1 :])
        if all(not of_class.isdisjoint(shards) for of_class in able):
            return shards
    return ()
