"""Finds blocks by their keys. Flat arrays: 35 bytes a block at most, where dicts of `bytes` take 190.

Open addressing with linear probing. A removed entry is closed up by moving back what stands behind it (Knuth,
The Art of Computer Programming 3, 6.4, algorithm R), so that lookups never slow down. Keys are hashes: their
first bytes say where probing begins.
"""

from array import array

KEY_BYTES = 16

_NOTHING = -1


class BlockIndex:
    """At most one key for each of `num_blocks` blocks."""

    def __init__(self, num_blocks: int):
        num_slots = 1 << max(1, 2 * num_blocks - 1).bit_length()  # at most half full
        self._mask = num_slots - 1
        self._slots = array("i", [_NOTHING]) * num_slots  # blocks, each at or behind its key's place
        self._keys = bytearray(KEY_BYTES * num_blocks)
        self._has_key = bytearray(num_blocks)
        self._num_keys = 0

    def __len__(self) -> int:
        return self._num_keys

    def __contains__(self, block: int) -> bool:
        """The block has a key."""
        return bool(self._has_key[block])

    def find(self, key: bytes) -> int | None:
        """The block with this key."""
        slots, slot = self._slots, self._place(key)
        while (block := slots[slot]) != _NOTHING:
            if self.key_of(block) == key:
                return block
            slot = (slot + 1) & self._mask
        return None

    def key_of(self, block: int) -> bytes:
        """The key of a block that has one."""
        return bytes(self._keys[KEY_BYTES * block : KEY_BYTES * (block + 1)])

    def add(self, block: int, key: bytes) -> bool:
        """Give a block its key; False if it has one already, or another block has this one."""
        if self._has_key[block]:
            return False
        slots, slot = self._slots, self._place(key)
        while (other := slots[slot]) != _NOTHING:
            if self.key_of(other) == key:
                return False
            slot = (slot + 1) & self._mask
        slots[slot] = block
        self._keys[KEY_BYTES * block : KEY_BYTES * (block + 1)] = key
        self._has_key[block] = True
        self._num_keys += 1
        return True

    def remove(self, block: int) -> None:
        """Forget the key of a block that has one."""
        slots, hole = self._slots, self._place(self.key_of(block))
        while slots[hole] != block:
            hole = (hole + 1) & self._mask
        slot = hole
        while (other := slots[slot := (slot + 1) & self._mask]) != _NOTHING:
            place = self._place(self.key_of(other))
            if (slot - place) & self._mask >= (slot - hole) & self._mask:  # the hole is on its way
                slots[hole], hole = other, slot
        slots[hole] = _NOTHING
        self._has_key[block] = False
        self._num_keys -= 1

    def _place(self, key: bytes) -> int:
        return int.from_bytes(key[:8], "little") & self._mask
