"""KV blocks by number: which are in use, by how many sequences, and what the free ones still hold.

A full block whose KV is final is found again by its *key*: a keyed hash of the key before it and of its
tokens, thus of all tokens up to its end and of the salt they began with. Free blocks keep their content until
they are taken: blank ones are taken first, then the least recently used, the ends of sequences before their
beginnings.

Everything is in flat arrays, about 80 bytes a block with the index.
"""

import hashlib
import secrets
from array import array
from collections.abc import Iterable, Iterator, Sequence

import msgspec

from shard.clock import Clock
from shard.engine.block_index import KEY_BYTES, BlockIndex


class Usage(msgspec.Struct):
    """Counts since the start. Times in milliseconds, from the end of a block's last use."""

    evicted_blocks: int = 0  # whose content was given up for other content
    evicted_age_ms: float = 0.0  # summed over them
    reused_blocks: int = 0  # free ones that were found again
    reused_gap_ms: float = 0.0  # summed over them


class BlockPool:
    """Blocks, and the limit of blocks in use. Knows no sequence and no memory."""

    def __init__(self, num_blocks: int, clock: Clock | None = None, usage: Usage | None = None):
        self.num_blocks = num_blocks  # limit of blocks in use, at most as many as it began with
        self.num_reached = 0  # one more than the highest number ever taken
        self.usage = usage or Usage()
        self._clock = clock or Clock()
        self._blank = array("i", range(num_blocks - 1, -1, -1))
        self._users = array("i", bytes(4 * num_blocks))
        self._index = BlockIndex(num_blocks)
        # Free blocks with content: a ring from the least to the most recently used, closed by a last one.
        self._end = num_blocks
        self._older = array("i", range(num_blocks + 1))
        self._newer = array("i", range(num_blocks + 1))
        self._freed_ms = array("d", bytes(8 * num_blocks))
        self.num_cached = 0  # free blocks with content

    @property
    def free(self) -> list[int]:
        """Blocks that nobody uses: blank ones, then those with content, the least recently used first."""
        return [*self._blank, *self._cached(self._newer)]

    @property
    def num_known(self) -> int:
        """Blocks with content that can be found, in use or free."""
        return len(self._index)

    @property
    def num_taken(self) -> int:
        return len(self._users) - len(self._blank) - self.num_cached

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
        num_missing = self._num_beyond - len(self._blank)
        if num_missing > 0:
            self._blank = array("i", [self._evict() for _ in range(num_missing)][::-1]) + self._blank
        return list(self._blank[: self._num_beyond])

    def take(self, count: int) -> list[int]:
        """Take `count` blocks; the caller must check `num_free` first."""
        num_blank = min(count, len(self._blank) - self._num_beyond)
        first = len(self._blank) - num_blank
        taken = list(self._blank[first:][::-1])
        del self._blank[first:]
        taken += [self._evict() for _ in range(count - num_blank)]
        for block in taken:
            self._users[block] = 1
        self.num_reached = max(self.num_reached, max(taken, default=-1) + 1)
        return taken

    def give_back(self, blocks: Sequence[int]) -> None:
        """End one use of each, in the order of their sequence."""
        now_ms = self._clock.now_ms() if blocks else 0.0
        for block in reversed(blocks):
            self._users[block] -= 1
            if self._users[block]:
                continue
            if block in self._index:
                self._link(block)
                self._freed_ms[block] = now_ms
            else:
                self._blank.append(block)

    def share(self, blocks: Sequence[int]) -> None:
        """Begin another use of blocks with content, or in use."""
        now_ms = self._clock.now_ms() if blocks else 0.0
        for block in blocks:
            if not self._users[block]:
                self._unlink(block)
                self.usage.reused_blocks += 1
                self.usage.reused_gap_ms += now_ms - self._freed_ms[block]
            self._users[block] += 1

    def find(self, key: bytes) -> int | None:
        """The block with this key. It stays as free as it is."""
        return self._index.find(key)

    def enter(self, block: int, key: bytes) -> None:
        """A block in use is full, and its KV final. Of two with the same content, one is kept."""
        self._index.add(block, key)

    def keys(self, blocks: Iterable[int]) -> dict[int, bytes]:
        """The keys of those blocks that have one."""
        return {block: self._index.key_of(block) for block in blocks if block in self._index}

    def latest(self, count: int) -> list[tuple[int, bytes]]:
        """Up to `count` free blocks with content and their keys, the most recently used first."""
        found = self._cached(self._older)
        return [(block, self._index.key_of(block)) for block, _ in zip(found, range(count), strict=False)]

    def clear(self) -> int:
        """Give up all content; the number of blocks that had some."""
        num_blocks = len(self._index)
        cached = list(self._cached(self._newer))
        for block in cached:
            self._unlink(block)
        self._blank.extend(cached)
        self._index = BlockIndex(len(self._users))
        return num_blocks

    @property
    def _num_beyond(self) -> int:
        """Free blocks that the limit lets nobody take."""
        return len(self._blank) + self.num_cached - self.num_free

    def _evict(self) -> int:
        block = self._newer[self._end]
        self._unlink(block)
        self._index.remove(block)
        self.usage.evicted_blocks += 1
        self.usage.evicted_age_ms += self._clock.now_ms() - self._freed_ms[block]
        return block

    def _link(self, block: int) -> None:
        """Put a block at the most recently used end of the ring."""
        last = self._older[self._end]
        self._newer[last] = self._older[self._end] = block
        self._older[block], self._newer[block] = last, self._end
        self.num_cached += 1

    def _unlink(self, block: int) -> None:
        older, newer = self._older[block], self._newer[block]
        self._newer[older], self._older[newer] = newer, older
        self.num_cached -= 1

    def _cached(self, way: "array[int]") -> Iterator[int]:
        block = way[self._end]
        while block != self._end:
            yield block
            block = way[block]


class Keys:
    """Makes blocks' keys. They cannot be guessed: the secret is this process's own."""

    def __init__(self, block_size: int, secret: bytes | None = None):
        self.block_size = block_size
        self.secret = secret or secrets.token_bytes(32)

    def first(self, salt: str) -> bytes:
        """What stands before the first block's key."""
        return self._hash(salt.encode())

    def follow(self, before: bytes, token_ids: Sequence[int], first: int, end: int) -> Iterator[bytes]:
        """The keys of the blocks numbered `first` to `end` of these tokens; `before`: the key before them."""
        size = self.block_size
        for index in range(first, end):
            before = self._hash(before + array("q", token_ids[index * size : (index + 1) * size]).tobytes())
            yield before

    def _hash(self, content: bytes) -> bytes:
        return hashlib.blake2b(content, digest_size=KEY_BYTES, key=self.secret).digest()
