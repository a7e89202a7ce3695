"""Routes classes of prompts to shards, where not every served choice is good enough for every class. Pure.

Only shards that serve a choice admitted for a class begin its prompts; without such a shard all do, so that
no request waits for ever.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping

from router.catalog.repository import Choice
from router.catalog.served_model import RoutingKey, ServedModel


class Routes:
    """Each class's admitted choices. `serving` returns each shard's model that requests begin on.

    It is asked once after each change, so that no query costs more with more shards.
    """

    def __init__(self, serving: Callable[[], Iterable[ServedModel]]) -> None:
        self._serving = serving
        self._admitted: Mapping[str, frozenset[Choice]] = {}
        self._counts: Counter[tuple[Choice, str]] | None = None  # cache: shards by choice and vocabulary
        self._excluded_keys: dict[Choice, frozenset[RoutingKey]] = {}  # cache

    @property
    def tells_apart(self) -> bool:
        """Some class is restricted to some choices."""
        return bool(self._admitted)

    def admit(self, admitted: Mapping[str, frozenset[Choice]]) -> None:
        """Set the admitted choices by class; classes that are not named go anywhere."""
        self._admitted = admitted
        self._excluded_keys = {}

    def refresh(self) -> None:
        """Note that requests begin on another model at some shard, or on none."""
        self._counts = None
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
        return sum(
            count
            for (served, _), count in self._count().items()
            if served == choice or own & self._taken_by(served)
        )

    def _count(self) -> Counter[tuple[Choice, str]]:
        if self._counts is None:
            self._counts = Counter((served.choice, served.tokenizer.digest) for served in self._serving())
        return self._counts

    def _taken_by(self, choice: Choice) -> set[str]:
        left = {kind.prompts for kind in self.excluded_keys(choice)}
        return self._admitted.keys() - left

    def _left_by(self, choice: Choice) -> list[RoutingKey]:
        left = []
        for prompts, admitted in self._admitted.items():
            able = {digest for served, digest in self._count() if served in admitted}
            if choice not in admitted and able:
                left += [RoutingKey(prompts), *(RoutingKey(prompts, digest) for digest in able)]
        return left
