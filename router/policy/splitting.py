"""Classes of prompts on choices and shards of their own: which shard serves what, and what it costs. Pure.

What a shard serves changes only where it must, since every change costs its shard some time.
"""

from collections import Counter
from collections.abc import Mapping, Sequence

import msgspec

from router.catalog.repository import Choice
from router.policy.classes import single_class_view
from router.policy.cost import Cost
from router.policy.evaluation import change_ms, is_open
from router.policy.observation import Observation
from router.policy.weighing import Ranked, best_of_each, find, weigh


class Split(msgspec.Struct, frozen=True):
    """Who serves which class of prompts, and on which shards."""

    by_class: dict[str, Ranked]  # as it was weighed for prompts of that class alone
    shards: tuple[Choice, ...]
    cost: Cost

    def __str__(self) -> str:
        return " and ".join(f"{option.choice} for {name}" for name, option in self.by_class.items())

    @property
    def spread(self) -> str:
        """How many shards each choice has, in words."""
        return " and ".join(f"{count} for {choice}" for choice, count in sorted(Counter(self.shards).items()))

    @property
    def choices(self) -> dict[str, Choice]:
        return {name: option.choice for name, option in self.by_class.items()}

    @property
    def why_not(self) -> str:
        """What rules out one of its choices; "": it may serve."""
        return next(
            (f"{option.choice}: {option.why_not}" for option in self.by_class.values() if option.why_not), ""
        )

    @property
    def considered(self) -> list[Ranked]:
        return [msgspec.structs.replace(option, prompts=name) for name, option in self.by_class.items()]


def best_split(observation: Observation) -> Split | None:
    """Each class that counts with its best choice; None where that is one for all, or shards are too few."""
    if len(observation.shards) < 2 or len(observation.counted) < 2:
        return None
    by_class = {
        name: best
        for name in sorted(observation.counted)
        if (best := _best(single_class_view(observation, name))) is not None
    }
    num_choices = len({option.choice for option in by_class.values()})
    if len(by_class) < len(observation.counted) or not 1 < num_choices <= len(observation.shards):
        return None
    load = _load(observation, by_class)
    return _split(observation, by_class, tuple(share_out(observation.shards, load)))


def serving_split(observation: Observation) -> Split:
    """The one that serves, for the classes that count now."""
    by_class: dict[str, Ranked] = {}
    for name in sorted(observation.counted):
        view = single_class_view(observation, name)
        unknown = Ranked(view.serving, 1.0, 1.0, "nothing is known of it")
        by_class[name] = find(weigh(view), view.serving) or unknown
    return _split(observation, by_class, _kept(observation, _load(observation, by_class)))


def untried(observation: Observation, split: Split) -> list[Choice]:
    """Its choices that were not measured of late under the prompts that they would get."""
    return [
        option.choice
        for name, option in split.by_class.items()
        if option.choice not in observation.served
        and is_open(single_class_view(observation, name), option.choice)
    ]


def rearranging_ms(observation: Observation, shards: tuple[Choice, ...]) -> float:
    """What it takes to have the shards serve this, as a mean over all of them."""
    changes = Counter(zip(observation.shards, shards, strict=True))
    total = sum(
        count * change_ms(msgspec.structs.replace(observation, serving=old), new)
        for (old, new), count in changes.items()
        if old != new
    )
    return total / len(shards)


def share_out(serving: Sequence[Choice], load: Mapping[Choice, float]) -> list[Choice]:
    """What each shard is to serve, so that each choice has as many shards as its share of the load.

    `load` has the work that prompts best served by a choice bring. Every choice with any load gets a shard
    while there are shards enough, the heaviest first. As many shards as possible keep what they serve.
    """
    places = _places(len(serving), load)
    result: list[Choice | None] = []
    for choice in serving:
        keeps = places.get(choice, 0) > 0
        if keeps:
            places[choice] -= 1
        result.append(choice if keeps else None)
    free = iter([choice for choice, count in places.items() for _ in range(count)])
    return [next(free) if choice is None else choice for choice in result]


def _best(view: Observation) -> Ranked | None:
    return next(iter(best_of_each(view, weigh(view))), None)


def _load(observation: Observation, by_class: dict[str, Ranked]) -> dict[Choice, float]:
    """Work of a mean request that each choice does."""
    total = sum(observation.demand.share(name) for name in by_class)
    load: dict[Choice, float] = {}
    for name, option in by_class.items():
        load[option.choice] = (
            load.get(option.choice, 0.0) + option.cost * observation.demand.share(name) / total
        )
    return load


def _kept(observation: Observation, load: dict[Choice, float]) -> tuple[Choice, ...]:
    """What the shards of a split serve, but for those that have tried something, or have to step in."""
    is_whole = observation.served.issuperset(observation.shards) and set(observation.shards).issuperset(load)
    return observation.shards if is_whole or not load else tuple(share_out(observation.shards, load))


def _split(observation: Observation, by_class: dict[str, Ranked], shards: tuple[Choice, ...]) -> Split:
    load = _load(observation, by_class)
    total = sum(load.values())
    amount = total
    if observation.repository.objective == "throughput":
        # Shards that wait for prompts of their class are lost: the busiest of them say what all can do.
        counts = Counter(shards)
        busiest = max((load[choice] / max(1, counts[choice]) for choice in load), default=0.0)
        amount = len(shards) * busiest
    worth = {name: observation.demand.share(name) * option.cost for name, option in by_class.items()}
    doubt = sum(worth[name] * option.error for name, option in by_class.items())
    return Split(by_class, shards, Cost(amount, doubt / max(1e-12, sum(worth.values()))))


def _places(num_shards: int, load: Mapping[Choice, float]) -> dict[Choice, int]:
    """Shards for each choice, by largest remainders behind one for each."""
    heaviest = sorted(
        (choice for choice in load if load[choice] > 0), key=lambda choice: (-load[choice], choice)
    )
    chosen = heaviest[:num_shards]
    total = sum(load[choice] for choice in chosen)
    spare = num_shards - len(chosen)
    exact = {choice: spare * load[choice] / total for choice in chosen}
    places = {choice: 1 + int(exact[choice]) for choice in chosen}
    by_remainder = sorted(chosen, key=lambda choice: (-(exact[choice] - int(exact[choice])), choice))
    for choice in by_remainder[: num_shards - sum(places.values())]:
        places[choice] += 1
    return places
