"""Splits: each class of prompts on a choice and shards of its own, and what that costs. Pure.

Shards keep their choice where possible, since each change costs a shard some time.
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
    """The choice for each class of prompts, and the choice for each shard."""

    by_class: dict[str, Ranked]  # ranked for prompts of that class alone
    shards: tuple[Choice, ...]
    cost: Cost

    def __str__(self) -> str:
        return " and ".join(f"{option.choice} for {name}" for name, option in self.by_class.items())

    @property
    def spread(self) -> str:
        """The number of shards of each choice, in words."""
        return " and ".join(f"{count} for {choice}" for choice, count in sorted(Counter(self.shards).items()))

    @property
    def choices(self) -> dict[str, Choice]:
        return {name: option.choice for name, option in self.by_class.items()}

    @property
    def why_not(self) -> str:
        """The reason against one of its choices; "" if all may serve."""
        return next(
            (f"{option.choice}: {option.why_not}" for option in self.by_class.values() if option.why_not), ""
        )

    @property
    def considered(self) -> list[Ranked]:
        return [msgspec.structs.replace(option, prompts=name) for name, option in self.by_class.items()]


def best_split(observation: Observation) -> Split | None:
    """The best choice for each class that counts; None if it is the same for all, or shards are too few."""
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
    """The current split, for the classes that count now."""
    by_class: dict[str, Ranked] = {}
    for name in sorted(observation.counted):
        view = single_class_view(observation, name)
        unknown = Ranked(view.serving, 1.0, 1.0, "nothing is known of it")
        by_class[name] = find(weigh(view), view.serving) or unknown
    return _split(observation, by_class, _kept(observation, _load(observation, by_class)))


def untried(observation: Observation, split: Split) -> list[Choice]:
    """Choices of a split without fresh measurements under the prompts that they would get."""
    return [
        option.choice
        for name, option in split.by_class.items()
        if option.choice not in observation.served
        and is_open(single_class_view(observation, name), option.choice)
    ]


def rearranging_ms(observation: Observation, shards: tuple[Choice, ...]) -> float:
    """Mean milliseconds per shard to change all shards to these choices."""
    changes = Counter(zip(observation.shards, shards, strict=True))
    total = sum(
        count * change_ms(msgspec.structs.replace(observation, serving=old), new)
        for (old, new), count in changes.items()
        if old != new
    )
    return total / len(shards)


def share_out(serving: Sequence[Choice], load: Mapping[Choice, float]) -> list[Choice]:
    """Choices for the shards, in numbers proportional to each choice's load.

    `load` is the work of the prompts that each choice serves. Every choice with load gets at least one shard
    while there are enough, the heaviest first. As many shards as possible keep their choice.
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
    """Each choice's part of a mean request's work."""
    total = sum(observation.demand.share(name) for name in by_class)
    load: dict[Choice, float] = {}
    for name, option in by_class.items():
        load[option.choice] = (
            load.get(option.choice, 0.0) + option.cost * observation.demand.share(name) / total
        )
    return load


def _kept(observation: Observation, load: dict[Choice, float]) -> tuple[Choice, ...]:
    """The choices of a split's shards, after evaluation and with shards reassigned where needed."""
    is_whole = observation.served.issuperset(observation.shards) and set(observation.shards).issuperset(load)
    return observation.shards if is_whole or not load else tuple(share_out(observation.shards, load))


def _split(observation: Observation, by_class: dict[str, Ranked], shards: tuple[Choice, ...]) -> Split:
    load = _load(observation, by_class)
    total = sum(load.values())
    amount = total
    if observation.repository.objective == "throughput":
        # Shards that wait for prompts of their class are lost: the busiest choice bounds the throughput.
        counts = Counter(shards)
        busiest = max((load[choice] / max(1, counts[choice]) for choice in load), default=0.0)
        amount = len(shards) * busiest
    worth = {name: observation.demand.share(name) * option.cost for name, option in by_class.items()}
    doubt = sum(worth[name] * option.error for name, option in by_class.items())
    return Split(by_class, shards, Cost(amount, doubt / max(1e-12, sum(worth.values()))))


def _places(num_shards: int, load: Mapping[Choice, float]) -> dict[Choice, int]:
    """Number of shards for each choice: one each, the others by largest remainders."""
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
