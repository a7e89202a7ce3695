"""What one shard has computed of prompts lately, as its prefix cache finds it. Pure.

The router has formed all of the shard's steps, so it knows without being told. It may take a few blocks to be
there that the shard has given up for others: a request is then computed where it goes, as any other.
"""

from collections.abc import Sequence

_KEY_BITS = (1 << 60) - 1


def block_keys(salt: str, token_ids: Sequence[int], block_size: int) -> list[int]:
    """A key for each full block: of its tokens and of all before it. Of 60 bits, which take least memory."""
    keys: list[int] = []
    before = hash(salt)
    for end in range(block_size, len(token_ids) + 1, block_size):
        before = hash((before, *token_ids[end - block_size : end])) & _KEY_BITS
        keys.append(before)
    return keys


class PrefixIndex:
    """As many blocks as the shard has, least recently used first."""

    def __init__(self, num_blocks: int):
        self._num_blocks = num_blocks
        self._keys: dict[int, None] = {}

    def add(self, keys: Sequence[int]) -> None:
        """A sequence's blocks, in its order: ends are forgotten before beginnings."""
        for key in reversed(keys):
            self._keys.pop(key, None)
            self._keys[key] = None
        while len(self._keys) > self._num_blocks:
            del self._keys[next(iter(self._keys))]

    def num_found(self, keys: Sequence[int]) -> int:
        """The blocks that are there before the first that is not."""
        return next((index for index, key in enumerate(keys) if key not in self._keys), len(keys))

    def change(self, num_blocks: int, num_kept: int) -> None:
        """The shard begins requests on another model, which has kept the latest blocks."""
        self._num_blocks = num_blocks
        while len(self._keys) > num_kept:
            del self._keys[next(iter(self._keys))]

    def clear(self) -> None:
        """Forget all."""
        self._keys.clear()
