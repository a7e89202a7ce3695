"""What one shard has computed of prompts lately, as its prefix cache finds it. Pure.

The router has formed all of the shard's steps, so it knows without being told. It may take a few blocks to be
there that the shard has given up for others: a request is then computed where it goes, as any other.
"""

from array import array
from collections.abc import Sequence

_NOTHING = -1


def block_keys(salt: str, token_ids: Sequence[int], block_size: int) -> "array[int]":
    """A key for each full block: of its tokens and of all before it."""
    keys = array("q")
    before = hash(salt)
    for end in range(block_size, len(token_ids) + 1, block_size):
        before = hash((before, *token_ids[end - block_size : end]))
        keys.append(before)
    return keys


class PrefixIndex:
    """As many blocks as the shard has, the least recently used leave first.

    Flat arrays, at most 32 bytes a block, where a dict of keys takes 90 to 150: a table of keys with linear
    probing, and a ring of its entries by last use. Python's hashes of tuples are places to begin probing.
    """

    def __init__(self, num_blocks: int):
        self._begin(num_blocks)

    def __len__(self) -> int:
        return self._num_entries

    def add(self, keys: Sequence[int]) -> None:
        """A sequence's blocks, in its order: ends are forgotten before beginnings."""
        for key in reversed(keys):
            entry = self._find(key)
            if entry == _NOTHING:
                entry = self._enter(key)
            else:
                self._unlink(entry)
            self._link(entry)

    def num_found(self, keys: Sequence[int]) -> int:
        """The blocks that are there before the first that is not. O(log n), as ends leave first."""
        found, missing = 0, len(keys) + 1  # so many are there; so many are not
        while missing - found > 1:
            middle = (found + missing) // 2
            if self._find(keys[middle - 1]) == _NOTHING:
                missing = middle
            else:
                found = middle
        return found

    def change(self, num_blocks: int, num_kept: int) -> None:
        """The shard begins requests on another model, which has kept the latest blocks."""
        kept, entry = array("q"), self._older[self._end]
        while entry != self._end and len(kept) < num_kept:
            kept.append(self._keys[entry])
            entry = self._older[entry]
        self._begin(num_blocks)
        self.add(kept)

    def clear(self) -> None:
        """Forget all."""
        self._begin(self._end)

    def _begin(self, num_blocks: int) -> None:
        num_slots = 1 << max(1, 2 * num_blocks - 1).bit_length()  # at most half full
        self._mask = num_slots - 1
        self._slots = array("i", [_NOTHING]) * num_slots  # entries, each at or behind its key's place
        self._keys = array("q", bytes(8 * num_blocks))
        self._num_entries = 0
        self._end = num_blocks  # closes the ring, from the least to the most recently used
        self._older = array("i", [num_blocks]) * (num_blocks + 1)
        self._newer = array("i", [num_blocks]) * (num_blocks + 1)

    def _find(self, key: int) -> int:
        """The entry of a key, else `_NOTHING`."""
        slots, keys, mask = self._slots, self._keys, self._mask
        slot = key & mask
        while (entry := slots[slot]) != _NOTHING and keys[entry] != key:
            slot = (slot + 1) & mask
        return entry

    def _enter(self, key: int) -> int:
        """A new entry, in place of the least recently used one if there are enough."""
        entry = self._num_entries
        if entry < self._end:
            self._num_entries += 1
        else:
            entry = self._newer[self._end]
            self._unlink(entry)
            self._remove(entry)
        slot = key & self._mask
        while self._slots[slot] != _NOTHING:
            slot = (slot + 1) & self._mask
        self._slots[slot] = entry
        self._keys[entry] = key
        return entry

    def _remove(self, entry: int) -> None:
        """Close up the gap that an entry leaves (Knuth, TAOCP 3, 6.4, algorithm R)."""
        slots, keys, mask = self._slots, self._keys, self._mask
        hole = keys[entry] & mask
        while slots[hole] != entry:
            hole = (hole + 1) & mask
        slot = hole
        while (other := slots[slot := (slot + 1) & mask]) != _NOTHING:
            if (slot - keys[other]) & mask >= (slot - hole) & mask:  # the hole is on its way
                slots[hole], hole = other, slot
        slots[hole] = _NOTHING

    def _link(self, entry: int) -> None:
        """Put an entry at the most recently used end of the ring."""
        last = self._older[self._end]
        self._newer[last] = self._older[self._end] = entry
        self._older[entry], self._newer[entry] = last, self._end

    def _unlink(self, entry: int) -> None:
        older, newer = self._older[entry], self._newer[entry]
        self._newer[older], self._older[newer] = newer, older
