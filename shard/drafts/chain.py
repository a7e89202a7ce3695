"""The drafters of a model in order: which one drafts for which sequence, and how much is verified.

A sequence gets the draft of the first drafter that has one for it. Drafters that cost time are asked only
where that pays by what is known of them. One that raises is switched off for good.
"""

import logging
import time
from collections.abc import Callable, Iterable
from typing import ParamSpec, TypeVar

import msgspec

from shard.drafts.acceptance import Acceptance
from shard.drafts.drafter import Draft, Drafter, Passed
from shard.drafts.legal import obey
from shard.drafts.pass_costs import PassCosts
from shard.drafts.planner import choose, choose_length
from shard.engine.sequence import Sequence

MAX_LENGTH = 24  # guesses of one draft
EXPLORE_ROUNDS = 64  # rounds in which nothing was worth it until one is tried all the same
HOPE = 0.5  # of what drafts are measured to cost, when they are tried all the same
SMOOTHING = 0.1

P = ParamSpec("P")
T = TypeVar("T")

_log = logging.getLogger(__name__)


class Asked(msgspec.Struct):
    """One sequence of a step, for which drafts are wanted."""

    sequence: Sequence
    most: int  # guesses by its own limits
    draft: Draft = msgspec.field(default_factory=Draft)
    drafter: "Link | None" = None


class Link:
    """A drafter, and what was measured of it."""

    def __init__(self, drafter: Drafter):
        self.drafter = drafter
        self.acceptance = Acceptance()
        self.guess_ms: dict[int, float] = {}  # by the number of sequences, as a power of two

    def expected_ms(self, num_sequences: int) -> float:
        """Milliseconds of a guess for each of so many sequences; 0 before any was made."""
        return self.guess_ms.get(num_sequences.bit_length(), 0.0)

    def note_ms(self, num_sequences: int, length: int, ms: float) -> None:
        """A draft of `length` guesses for each of so many sequences took so long."""
        size, each = num_sequences.bit_length(), ms / max(1, length)
        before = self.guess_ms.get(size, each)
        self.guess_ms[size] = before + SMOOTHING * (each - before)


class DraftChain:
    """Drafts for the sequences of a step.

    `reserve` takes blocks for further tokens of a sequence, and says for how many there is a place. `always`:
    whatever is drafted is verified.
    """

    def __init__(
        self,
        drafters: Iterable[Drafter],
        reserve: Callable[[Sequence, int], int],
        always: bool = False,
    ):
        self._links = [Link(drafter) for drafter in drafters]
        self._reserve = reserve
        self._always = always
        self._idle_rounds = 0
        # numbers of layers behind which some drafter wants hidden states
        self.layers = tuple(sorted({layer for link in self._links for layer in link.drafter.layers}))
        self.costs = PassCosts()
        self.draft_ms = 0.0  # of the last round

    def propose(self, asked: list[Asked], num_others: int) -> None:
        """Fill in the drafts that are worth a pass's rows. `num_others` tokens of prompts run beside."""
        started = time.perf_counter()
        hopeful = self._idle_rounds >= EXPLORE_ROUNDS

        def cost(num_drafts: int) -> float:
            none = self.costs.ms(len(asked), 0, num_others)
            more = max(0.0, self.costs.ms(len(asked), num_drafts, num_others) - none)
            return none + (HOPE * more if hopeful else more)

        for link in list(self._links):
            open_ = [one for one in asked if not one.draft and one.most > 0]
            if open_:
                self._ask(link, open_, len(asked), cost)
        drafting = [one for one in asked if one.draft]
        if not self._always:
            lengths = choose([self._chances(one) for one in drafting], len(asked), cost)
            for one, length in zip(drafting, lengths, strict=True):
                one.draft.cut(length)
            self._idle_rounds = 0 if any(lengths) else self._idle_rounds + bool(drafting)
        for one in drafting:
            one.draft.cut(self._room(one.sequence, len(one.draft)))
        self.draft_ms = (time.perf_counter() - started) * 1000

    def note(self, passed: list[Passed]) -> None:
        """Tell every drafter what a pass computed, with the hidden states of its layers."""
        for link in list(self._links):
            some = [self.layers.index(layer) for layer in link.drafter.layers]
            told = [msgspec.structs.replace(one, states=[one.states[i] for i in some]) for one in passed]
            self._guarded(link, link.drafter.note, told)

    def settle(self, asked: list[Asked], accepted: list[int]) -> None:
        """Learn how many guesses of each draft were right."""
        for one, right in zip(asked, accepted, strict=True):
            for link in self._links:
                if one.draft and link is one.drafter:
                    link.acceptance.note(one.sequence, one.draft, right)
                else:
                    link.acceptance.note_none(one.sequence)

    def retire(self, sequence: Sequence) -> None:
        """A sequence has left the shard."""
        for link in list(self._links):
            self._guarded(link, link.drafter.retire, sequence)

    def clear(self, running: list[Sequence]) -> None:
        """What any sequence has said so far helps no other any more; `running` ones go on."""
        for link in list(self._links):
            self._guarded(link, link.drafter.clear, running)

    def _ask(self, link: Link, asked: list[Asked], num_sequences: int, cost: Callable[[int], float]) -> None:
        """Fill in the drafts of one drafter, if asking it is worth its time."""
        sequences, lengths = [one.sequence for one in asked], [one.most for one in asked]
        if not link.drafter.is_free:
            longest = MAX_LENGTH
            if not self._always:
                chances = [link.acceptance.unseen(one.sequence, one.most) for one in asked]
                guess_ms = link.expected_ms(len(asked))
                longest = choose_length(chances, num_sequences, cost, guess_ms, MAX_LENGTH)
            if not longest:
                self._idle_rounds += 1
                return
            lengths = [self._room(one.sequence, min(longest, one.most)) for one in asked]
        started = time.perf_counter()
        drafts = self._guarded(link, link.drafter.propose, sequences, lengths)
        if drafts is None:
            return
        if not link.drafter.is_free:
            longest = max(map(len, drafts), default=0)
            link.note_ms(len(asked), longest, (time.perf_counter() - started) * 1000)
        for one, draft, length in zip(asked, drafts, lengths, strict=True):
            draft.cut(length)
            obey(draft, one.sequence)
            one.draft, one.drafter = draft, link

    def _chances(self, one: Asked) -> list[float]:
        assert one.drafter is not None
        return one.drafter.acceptance.chances(one.sequence, one.draft.grades)

    def _room(self, sequence: Sequence, wanted: int) -> int:
        """How many of the wanted guesses the sequence's blocks hold, with those that are free."""
        return self._reserve(sequence, wanted) if wanted else 0

    def _guarded(self, link: Link, call: Callable[P, T], *given: P.args, **named: P.kwargs) -> T | None:
        """A drafter's answer; None if it fails, which is its last time."""
        try:
            return call(*given, **named)
        except Exception:
            self._links.remove(link)
            name = link.drafter.name.value
            _log.warning("The drafter %r has failed and is switched off.", name, exc_info=True)
            return None
