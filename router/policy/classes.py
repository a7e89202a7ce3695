"""The classes of prompts that count in the traffic, each looked at as if there were no other. Pure."""

import msgspec

from router.catalog.repository import Choice
from router.policy.eligibility import keeps_floor, why_never
from router.policy.observation import Demand, Observation


def single_class_view(observation: Observation, name: str) -> Observation:
    """As it would look if all prompts were of one class, served by what serves that now."""
    demand = msgspec.structs.replace(observation.demand, mix={name: 1.0})
    view = msgspec.structs.replace(observation, demand=demand, split={})
    if not observation.split:
        return view
    able = (choice for choice in sorted(observation.served) if keeps_floor(view, choice))
    serving = observation.split.get(name) or next(able, observation.serving)
    return msgspec.structs.replace(view, serving=serving)


def admitted(observation: Observation) -> dict[str, frozenset[Choice]]:
    """For prompts of each class that counts, the choices that keep the floor. {}: there is one shard."""
    if len(observation.shards) < 2:
        return {}
    choices = [choice for profile in observation.profiles.values() for choice in profile.choices]
    views = {name: single_class_view(observation, name) for name in observation.counted}
    return {
        name: frozenset(choice for choice in choices if keeps_floor(view, choice))
        for name, view in views.items()
    }


def classes_excluded_by(observation: Observation, choice: Choice) -> frozenset[str]:
    """Classes that count and go to other shards, since the choice does not keep the floor for them."""
    return frozenset(name for name, able in admitted(observation).items() if choice not in able)


def demand_for(observation: Observation, choice: Choice) -> Demand:
    """What a shard with this choice is sent."""
    excluded_classes = classes_excluded_by(observation, choice)
    own = {name: share for name, share in observation.demand.mix.items() if name not in excluded_classes}
    total = sum(own.values())
    if not excluded_classes or not total:
        return observation.demand
    return msgspec.structs.replace(
        observation.demand, mix={name: share / total for name, share in own.items()}
    )


def may_be_tried(observation: Observation, choice: Choice) -> bool:
    """It may serve, be it only prompts of one class that go to its shard."""
    views = (
        [single_class_view(observation, name) for name in observation.counted]
        if len(observation.shards) > 1
        else []
    )
    return any(not why_never(view, choice) for view in (observation, *views))


def unfit(observation: Observation) -> tuple[Choice, str] | None:
    """What serves and may not, and why."""
    views = (
        [single_class_view(observation, name) for name in observation.counted]
        if observation.split
        else [observation]
    )
    found = ((view.serving, why_never(view, view.serving)) for view in views)
    return next((served for served in found if served[1]), None)


def shards_for_trial(observation: Observation, trying: Choice) -> tuple[Choice, ...]:
    """What the shards of a split serve while one of them tries a choice; (): none can be spared.

    Prompts of every class that counts keep a shard that is good enough for them.
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
