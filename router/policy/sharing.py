"""Several shards, several depths: who serves what, when kinds of prompts are best served differently. Pure.

What a shard serves changes only where it must, since every change costs its shard some time.
"""

from collections.abc import Mapping, Sequence

from router.catalog.repository import Choice


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


def _places(num_shards: int, load: Mapping[Choice, float]) -> dict[Choice, int]:
    """Shards for each choice, by largest remainders behind one for each."""
    heaviest = sorted((choice for choice in load if load[choice] > 0), key=lambda one: (-load[one], one))
    chosen = heaviest[:num_shards]
    total = sum(load[choice] for choice in chosen)
    spare = num_shards - len(chosen)
    exact = {choice: spare * load[choice] / total for choice in chosen}
    places = {choice: 1 + int(exact[choice]) for choice in chosen}
    by_remainder = sorted(chosen, key=lambda one: (-(exact[one] - int(exact[one])), one))
    for choice in by_remainder[: num_shards - sum(places.values())]:
        places[choice] += 1
    return places
