"""What followed n tokens when they were last said: a table of fixed size, as llama.cpp's ngram-mod.

An entry is the next token, a mark of the n-gram's hash, and the time it was written. An n-gram has two
places, of which the older is given up: what is not said again is forgotten.
"""

from array import array

NUM_ENTRIES = 1 << 18  # of 12 bytes: 3 MiB
_MASK_64 = (1 << 64) - 1
_FACTOR = 0x9E3779B97F4A7C15


class NgramPool:
    """n-gram -> next token. What was entered under one seed is not found under another."""

    def __init__(self, num_entries: int = NUM_ENTRIES):
        self._mask = num_entries - 1
        if num_entries & self._mask:
            raise ValueError(f"{num_entries} entries are no power of two")
        self._next = array("i", [-1]) * num_entries
        self._marks = array("I", [0]) * num_entries
        self._times = array("I", [0]) * num_entries
        self._now = 0

    @property
    def num_bytes(self) -> int:
        return sum(len(part) * part.itemsize for part in (self._next, self._marks, self._times))

    def enter(self, seed: int, ngram: list[int], token_id: int) -> None:
        """`token_id` has followed an n-gram."""
        slot, mark = self._place(seed, ngram)
        other = slot ^ 1
        if self._marks[slot] != mark and (
            self._marks[other] == mark or self._times[other] < self._times[slot]
        ):
            slot = other
        self._now = (self._now + 1) & 0xFFFFFFFF
        self._next[slot], self._marks[slot], self._times[slot] = token_id, mark, self._now

    def find(self, seed: int, ngram: list[int]) -> int | None:
        """What followed an n-gram last; None: it is not known."""
        slot, mark = self._place(seed, ngram)
        for place in (slot, slot ^ 1):
            if self._marks[place] == mark and self._next[place] >= 0:
                return self._next[place]
        return None

    def _place(self, seed: int, ngram: list[int]) -> tuple[int, int]:
        state = seed
        for token_id in ngram:
            state = (state * _FACTOR + token_id + 1) & _MASK_64
        state ^= state >> 29
        state = (state * 0xBF58476D1CE4E5B9) & _MASK_64
        return (state >> 8) & self._mask, state >> 32
