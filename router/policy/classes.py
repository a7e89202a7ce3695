"""The classes of prompts that count in the traffic, each looked at as if there were no other. Pure."""

import msgspec

from router.catalog.repository import Choice
from router.policy.eligibility import keeps_floor, why_never
from router.policy.observation import Demand, Seen


def alone(seen: Seen, name: str) -> Seen:
    """As it would look if all prompts were of one class, served by what serves that now."""
    demand = msgspec.structs.replace(seen.demand, mix={name: 1.0})
    view = msgspec.structs.replace(seen, demand=demand, split={})
    if not seen.split:
        return view
    able = (choice for choice in sorted(seen.served) if keeps_floor(view, choice))
    serving = seen.split.get(name) or next(able, seen.serving)
    return msgspec.structs.replace(view, serving=serving)


def admitted(seen: Seen) -> dict[str, frozenset[Choice]]:
    """For prompts of each class that counts, the choices that keep the floor. {}: there is one shard."""
    if len(seen.shards) < 2:
        return {}
    choices = [choice for facts in seen.facts.values() for choice in facts.choices]
    views = {name: alone(seen, name) for name in seen.counted}
    return {
        name: frozenset(choice for choice in choices if keeps_floor(view, choice))
        for name, view in views.items()
    }


def foreign_to(seen: Seen, choice: Choice) -> frozenset[str]:
    """Classes that count, and go elsewhere since the choice does not keep the floor for them."""
    return frozenset(name for name, able in admitted(seen).items() if choice not in able)


def demand_for(seen: Seen, choice: Choice) -> Demand:
    """What a shard with this choice is sent."""
    foreign = foreign_to(seen, choice)
    own = {name: share for name, share in seen.demand.mix.items() if name not in foreign}
    total = sum(own.values())
    if not foreign or not total:
        return seen.demand
    return msgspec.structs.replace(seen.demand, mix={name: share / total for name, share in own.items()})


def may_be_tried(seen: Seen, choice: Choice) -> bool:
    """It may serve, be it only prompts of one class that go to its shard."""
    views = [alone(seen, name) for name in seen.counted] if len(seen.shards) > 1 else []
    return any(not why_never(view, choice) for view in (seen, *views))


def unfit(seen: Seen) -> tuple[Choice, str] | None:
    """What serves and may not, and why."""
    views = [alone(seen, name) for name in seen.counted] if seen.split else [seen]
    found = ((view.serving, why_never(view, view.serving)) for view in views)
    return next((one for one in found if one[1]), None)


def lent(seen: Seen, trying: Choice) -> tuple[Choice, ...]:
    """What the shards of a split serve while one of them tries a choice; (): none can be spared.

    Prompts of every class that counts keep a shard that is good enough for them.
    """
    if trying in seen.shards:
        return seen.shards
    able = admitted(seen).values()
    for choice in sorted(set(seen.shards), key=lambda one: (one in seen.served, one)):
        index = len(seen.shards) - 1 - seen.shards[::-1].index(choice)
        shards = (*seen.shards[:index], trying, *seen.shards[index + 1 :])
        if all(not of_class.isdisjoint(shards) for of_class in able):
            return shards
    return ()
