"""Which shards begin which kinds of prompts, where what serves is not good enough for each of them. Pure.

A kind is left to the shards that serve a choice admitted for it while there is one; where there is none,
anybody takes it, so that nobody waits for ever.
"""

from collections import Counter
from collections.abc import Mapping

from router.catalog.repository import Choice
from router.catalog.served_model import RoutingKey, ServedModel


class Routes:
    """The kinds that are told apart, and what shards serve that begin requests. No cost grows with shards."""

    def __init__(self) -> None:
        self._admitted: Mapping[str, frozenset[Choice]] = {}
        self._serving: dict[int, tuple[Choice, str]] = {}  # by shard: the choice and its vocabulary
        self._counts: Counter[tuple[Choice, str]] = Counter()
        self._excluded_keys: dict[Choice, frozenset[RoutingKey]] = {}  # as far as it was asked for

    @property
    def tells_apart(self) -> bool:
        """Some kinds do not go anywhere."""
        return bool(self._admitted)

    def admit(self, admitted: Mapping[str, frozenset[Choice]]) -> None:
        """From now on, prompts about these go to shards that serve one of these; others go anywhere."""
        self._admitted = admitted
        self._excluded_keys = {}

    def serve(self, shard: int, served_model: ServedModel | None) -> None:
        """Requests begin on this there from now on; None: on nothing."""
        before = self._serving.pop(shard, None)
        if before is not None:
            self._counts[before] -= 1
        if served_model is not None:
            served = self._serving[shard] = (served_model.choice, served_model.tokenizer.digest)
            self._counts[served] += 1
        self._excluded_keys = {}

    def excluded_keys(self, choice: Choice) -> frozenset[RoutingKey]:
        """Kinds that a shard which serves this leaves to the others."""
        if not self._admitted:
            return frozenset()
        if choice not in self._excluded_keys:
            self._excluded_keys[choice] = frozenset(self._left_by(choice))
        return self._excluded_keys[choice]

    def num_rivals(self, choice: Choice) -> int:
        """Shards that share a class of prompts with a shard that serves this choice, itself included."""
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
