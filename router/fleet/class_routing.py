"""Routes classes of prompts to shards, where not every served choice is good enough for every class. Pure.

Only shards that serve a choice admitted for a class begin its prompts; without such a shard all do, so that
no request waits for ever.
"""

from collections import Counter
from collections.abc import Mapping

from router.catalog.repository import Choice
from router.catalog.served_model import RoutingKey, ServedModel


class Routes:
    """Each class's admitted choices and each shard's choice. No query costs more with more shards."""

    def __init__(self) -> None:
        self._admitted: Mapping[str, frozenset[Choice]] = {}
        self._serving: dict[int, tuple[Choice, str]] = {}  # by shard: choice, vocabulary
        self._counts: Counter[tuple[Choice, str]] = Counter()
        self._excluded_keys: dict[Choice, frozenset[RoutingKey]] = {}  # cache

    @property
    def tells_apart(self) -> bool:
        """Some class is restricted to some choices."""
        return bool(self._admitted)

    def admit(self, admitted: Mapping[str, frozenset[Choice]]) -> None:
        """Set the admitted choices by class; classes that are not named go anywhere."""
        self._admitted = admitted
        self._excluded_keys = {}

    def serve(self, shard: int, served_model: ServedModel | None) -> None:
        """Note the model that requests begin on at a shard; None: none."""
        before = self._serving.pop(shard, None)
        if before is not None:
            self._counts[before] -= 1
        if served_model is not None:
            served = self._serving[shard] = (served_model.choice, served_model.tokenizer.digest)
            self._counts[served] += 1
        self._excluded_keys = {}

    def excluded_keys(self, choice: Choice) -> frozenset[RoutingKey]:
        """Routing keys that a shard with this choice leaves to others."""
        if not self._admitted:
            return frozenset()
        if choice not in self._excluded_keys:
            self._excluded_keys[choice] = frozenset(self._left_by(choice))
        return self._excluded_keys[choice]

    def num_rivals(self, choice: Choice) -> int:
        """Number of shards that share a class with a shard that serves this choice, itself included."""
        own = self._taken_by(choice)
        rivals = (key for key in self._counts if key[0] == choice or own & self._taken_by(key[0]))
        return sum(self._counts[key] for key in rivals)

    def _taken_by(self, choice: Choice) -> set[str]:
        left = {kind.prompts for kind in self.excluded_keys(choice)}
        return self._admitted.keys() - left

    def _left_by(self, choice: Choice) -> list[RoutingKey]:
        left = []
        for prompts, admitted in self._admitted.items():
            able = {
                digest for (served, digest), count in self._counts.items() if count and served in admitted
            }
            if choice not in admitted and able:
                left += [RoutingKey(prompts), *(RoutingKey(prompts, digest) for digest in able)]
        return left
