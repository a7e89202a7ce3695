"""How often drafts are right: by drafter and grade over all sequences, and how one sequence differs. Pure."""

from weakref import WeakKeyDictionary

import msgspec

from shard.drafts.drafter import NUM_GRADES, Draft
from shard.engine.sequence import Sequence
from shard.messages import DRAFT_PLACES

PRIOR = 0.6  # chance of a guess before any of its grade was checked: hopeful, so that it is tried
SMOOTHING = 0.02
OWN_WEIGHT = 3.0  # guesses of a sequence's own after which it counts for as much as all others
OWN_MEMORY = 0.97  # of a sequence's past, for each further guess
RECOVERY = 0.98  # of what speaks against a sequence's drafts, for each round without any
MOST_CERTAIN = 0.98


class Rate(msgspec.Struct):
    """A share, smoothed, that begins as a prior."""

    share: float = PRIOR
    count: int = 0

    def note(self, hit: bool) -> None:
        self.count += 1
        self.share += max(SMOOTHING, 1 / (self.count + 2)) * (hit - self.share)


class Own(msgspec.Struct):
    """A sequence's right guesses, beside what was expected of them."""

    right: float = 0.0
    expected: float = 0.0

    @property
    def factor(self) -> float:
        """Of the chances of others, what is its own."""
        return (self.right + OWN_WEIGHT) / (self.expected + OWN_WEIGHT)


class Acceptance:
    """The chances of one drafter's guesses, given that those before them are right."""

    def __init__(self) -> None:
        self._by_grade = [Rate() for _ in range(NUM_GRADES)]
        self._by_place = [Rate() for _ in range(DRAFT_PLACES)]
        self._own: WeakKeyDictionary[Sequence, Own] = WeakKeyDictionary()

    def chances(self, sequence: Sequence, grades: list[int]) -> list[float]:
        """The chance of each guess of these grades."""
        factor = self._factor(sequence)
        return [min(MOST_CERTAIN, self._by_grade[grade].share * factor) for grade in grades]

    def unseen(self, sequence: Sequence, length: int) -> list[float]:
        """The chance of each of `length` guesses, before there are any."""
        factor, last = self._factor(sequence), DRAFT_PLACES - 1
        return [min(MOST_CERTAIN, self._by_place[min(i, last)].share * factor) for i in range(length)]

    def note(self, sequence: Sequence, draft: Draft, accepted: int) -> None:
        """So many of a draft's guesses were right. Those behind a wrong one were not checked."""
        own = self._own.setdefault(sequence, Own())
        for place, grade in enumerate(draft.grades[: accepted + 1]):
            hit = place < accepted
            own.right = own.right * OWN_MEMORY + hit
            own.expected = own.expected * OWN_MEMORY + self._by_grade[grade].share
            self._by_grade[grade].note(hit)
            self._by_place[min(place, DRAFT_PLACES - 1)].note(hit)

    def note_none(self, sequence: Sequence) -> None:
        """A round has gone by without a guess for a sequence: what is known of it grows old."""
        own = self._own.get(sequence)
        if own is not None:
            own.right *= RECOVERY
            own.expected *= RECOVERY

    def _factor(self, sequence: Sequence) -> float:
        own = self._own.get(sequence)
        return 1.0 if own is None else own.factor
