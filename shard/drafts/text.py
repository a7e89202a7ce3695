"""`text`: drafts from what was said before, by the sequence itself and, where allowed, by others.

A sequence's own longest match comes first, then what followed its last tokens in others' text. Others are
those with the same `cache_salt`, as for the prefix cache: the time that an answer takes would tell what they
wrote.
"""

import hashlib
import secrets
from weakref import WeakKeyDictionary

from shard.drafts.drafter import Draft
from shard.drafts.ngram_pool import NgramPool
from shard.drafts.own_text import OwnText
from shard.engine.sequence import Sequence
from shard.messages import DrafterKind, DraftSharing

SHORT, LONG = 3, 6  # tokens of the pool's n-grams
CERTAIN_MATCH = 5  # own tokens that match before the pool is not asked
_POOL_GRADES = {SHORT: 8, LONG: 9}
_LEAST_MATCHES = (0, 3, 4, 5, 7, 10, 16, 24)  # of the grades of a sequence's own matches


class TextDrafter:
    """Looks drafts up; knows no model. It holds the pool, and some 8 bytes for each token that runs."""

    name = DrafterKind.TEXT
    layers: tuple[int, ...] = ()
    is_free = True

    def __init__(self, sharing: DraftSharing = DraftSharing.SHARD, pool: NgramPool | None = None):
        self._pool = (pool or NgramPool()) if sharing is DraftSharing.SHARD else None
        self._own: WeakKeyDictionary[Sequence, OwnText] = WeakKeyDictionary()
        self._secret = secrets.token_bytes(32)
        self._num_pooled: WeakKeyDictionary[Sequence, int] = WeakKeyDictionary()

    def propose(self, sequences: list[Sequence], max_lengths: list[int]) -> list[Draft]:
        """The longest match's continuation for each sequence."""
        return [self._propose(s, length) for s, length in zip(sequences, max_lengths, strict=True)]

    def note(self, passed: object) -> None:
        """Nothing: tokens are read when a draft is wanted, and when their sequence ends."""

    def retire(self, sequence: Sequence) -> None:
        """Enter the rest of a sequence's text."""
        self._own.pop(sequence, None)
        self._enter(sequence)
        self._num_pooled.pop(sequence, None)

    def clear(self, running: list[Sequence]) -> None:
        """Find nothing in the pool that was said before: a new secret gives n-grams other places."""
        self._secret = secrets.token_bytes(32)
        for sequence in running:
            self._num_pooled[sequence] = sequence.num_tokens + LONG  # their n-grams that reach back stay out

    def _propose(self, sequence: Sequence, length: int) -> Draft:
        own = self._own.get(sequence)
        if own is None:
            own = self._own[sequence] = OwnText(sequence.max_tokens)
        own.extend(sequence.token_ids)
        self._enter(sequence)
        found, matched = own.find(sequence.token_ids, length)
        if matched < CERTAIN_MATCH and self._pool is not None:
            pooled = self._from_pool(self._pool, sequence, length)
            if pooled and (not found or pooled.grades[0] == _POOL_GRADES[LONG]):
                return pooled
        return Draft(found, [_grade(matched + place) for place in range(len(found))])

    def _from_pool(self, pool: NgramPool, sequence: Sequence, length: int) -> Draft:
        draft, seed = Draft([], []), self._seed(sequence)
        recent = sequence.token_ids[-LONG:]
        while len(draft) < length:
            for order in (LONG, SHORT):
                known = pool.find(seed, recent[-order:]) if len(recent) >= order else None
                if known is not None:
                    break
            else:
                break
            draft.token_ids.append(known)
            draft.grades.append(_POOL_GRADES[order])
            recent = [*recent[1 - LONG :], known]
        return draft

    def _enter(self, sequence: Sequence) -> None:
        """Enter into the pool what is new of a sequence."""
        if self._pool is None:
            return
        ids, seed = sequence.token_ids, self._seed(sequence)
        for place in range(self._num_pooled.get(sequence, SHORT), len(ids)):
            for order in (SHORT, LONG):
                if place >= order:
                    self._pool.enter(seed, ids[place - order : place], ids[place])
        self._num_pooled[sequence] = len(ids)

    def _seed(self, sequence: Sequence) -> int:
        digest = hashlib.blake2b(sequence.cache_salt.encode(), digest_size=8, key=self._secret).digest()
        return int.from_bytes(digest)


def _grade(matched: int) -> int:
    """The grade of a guess behind so many matching tokens."""
    return sum(matched >= least for least in _LEAST_MATCHES) - 1
