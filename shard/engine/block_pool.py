"""KV blocks by number: which are in use, by how many sequences, and what the free ones still hold.

A full block whose KV is final is found again by its *key*: a keyed hash of the key before it and of its
tokens, thus of all tokens up to its end and of the salt they began with. Free blocks keep their content until
they are taken: blank ones are taken first, then the least recently used, the ends of sequences before their
beginnings.
"""

import hashlib
import secrets
from array import array
from collections.abc import Iterable, Sequence

_KEY_BYTES = 16


class BlockPool:
    """Blocks, and the limit of blocks in use. Knows no sequence and no memory."""

    def __init__(self, num_blocks: int):
        self.num_blocks = num_blocks  # limit of blocks in use, at most as many as it began with
        self.num_reached = 0  # one more than the highest number ever taken
        self.num_evicted = 0  # blocks whose content was given up so far
        self._blank = list(range(num_blocks - 1, -1, -1))
        self._cached: dict[int, None] = {}  # free blocks with content, least recently used first
        self._users = [0] * num_blocks
        self._key_of: dict[int, bytes] = {}
        self._block_of: dict[bytes, int] = {}

    @property
    def free(self) -> list[int]:
        """Blocks that nobody uses, in no order."""
        return [*self._blank, *self._cached]

    @property
    def num_cached(self) -> int:
        """Free blocks with content."""
        return len(self._cached)

    @property
    def num_taken(self) -> int:
        return len(self._users) - len(self._blank) - len(self._cached)

    @property
    def num_free(self) -> int:
        return self.num_blocks - self.num_taken

    def limit(self, num_blocks: int) -> list[int]:
        """Set the limit, at least the number in use; returns free blocks that are now beyond it."""
        if not self.num_taken <= num_blocks <= len(self._users):
            raise ValueError(
                f"{num_blocks} of {len(self._users)} blocks, of which {self.num_taken} are taken"
            )
        self.num_blocks = num_blocks
        while len(self._blank) < self._num_beyond:
            self._blank.insert(0, self._evict())
        return self._blank[: self._num_beyond]

    def take(self, count: int) -> list[int]:
        """Take `count` blocks; the caller must check `num_free` first."""
        num_blank = min(count, len(self._blank) - self._num_beyond)
        first = len(self._blank) - num_blank
        taken = self._blank[first:][::-1]
        del self._blank[first:]
        taken += [self._evict() for _ in range(count - num_blank)]
        for block in taken:
            self._users[block] = 1
        self.num_reached = max(self.num_reached, max(taken, default=-1) + 1)
        return taken

    def give_back(self, blocks: Sequence[int]) -> None:
        """End one use of each, in the order of their sequence."""
        for block in reversed(blocks):
            self._users[block] -= 1
            if self._users[block]:
                continue
            if block in self._key_of:
                self._cached[block] = None
            else:
                self._blank.append(block)

    def share(self, blocks: Iterable[int]) -> None:
        """Begin another use of blocks with content, or in use."""
        for block in blocks:
            self._cached.pop(block, None)
            self._users[block] += 1

    def find(self, keys: Iterable[bytes]) -> list[int]:
        """The blocks of the first keys, as far as there are any. They stay as free as they are."""
        found = []
        for key in keys:
            block = self._block_of.get(key)
            if block is None:
                break
            found.append(block)
        return found

    def enter(self, block: int, key: bytes) -> None:
        """A block in use is full, and its KV final. Of two with the same content, one is kept."""
        if key not in self._block_of and block not in self._key_of:
            self._key_of[block] = key
            self._block_of[key] = block

    def forget(self) -> int:
        """Give up all content; the number of blocks that had some."""
        num_blocks = len(self._key_of)
        self._key_of.clear()
        self._block_of.clear()
        self._blank += self._cached
        self._cached.clear()
        return num_blocks

    @property
    def _num_beyond(self) -> int:
        """Free blocks that the limit lets nobody take."""
        return len(self._blank) + len(self._cached) - self.num_free

    def _evict(self) -> int:
        block = next(iter(self._cached))
        del self._cached[block], self._block_of[self._key_of.pop(block)]
        self.num_evicted += 1
        return block


class Keys:
    """Makes blocks' keys. They cannot be guessed: the secret is this process's own."""

    def __init__(self, block_size: int):
        self._block_size = block_size
        self._secret = secrets.token_bytes(32)

    def first(self, salt: str) -> bytes:
        """What stands before the first block's key."""
        return self._hash(salt.encode())

    def extend(self, keys: list[bytes], salt: str, token_ids: Sequence[int], num_tokens: int) -> None:
        """Add the keys of the further blocks that the first `num_tokens` tokens fill."""
        size = self._block_size
        for index in range(len(keys), num_tokens // size):
            before = keys[-1] if keys else self.first(salt)
            keys.append(
                self._hash(before + array("q", token_ids[index * size : (index + 1) * size]).tobytes())
            )

    def _hash(self, content: bytes) -> bytes:
        return hashlib.blake2b(content, digest_size=_KEY_BYTES, key=self._secret).digest()
