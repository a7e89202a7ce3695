"""Text of an exact number of tokens, without a local tokenizer.

A byte-pair tokenizer never merges across a space, so words of one token each stay one token each in a row.
The server is asked once which words these are. If it cannot tell, every word counts as one token, and lengths
are reported as estimates.
"""

import asyncio
import functools
import itertools
import random
from collections.abc import Awaitable, Callable
from importlib.resources import files

import msgspec

CANDIDATES = tuple((files("loadgen.traffic") / "words.txt").read_text().split())
FIRST = "the"
POOL_WORDS = 20_000
TRIAL = 8  # repetitions that separate a word's tokens from those around it

CountTokens = Callable[[str], Awaitable[int | None]]


class Filler(msgspec.Struct, frozen=True):
    """Words of one token each, and the number of tokens of a text beyond its words."""

    words: tuple[str, ...] = CANDIDATES
    extra_tokens: int = 0
    is_exact: bool = False

    def text(self, num_tokens: int, source: random.Random) -> str:
        """A text of `num_tokens` words. The first is fixed: without a space a word may count differently.

        Long texts are cut from a pool, to save time under load; two drawn words in front distinguish texts
        from the same place of the pool.
        """
        parts = [FIRST, *source.choices(self.words, k=min(2, max(0, num_tokens - 1)))]
        pool, starts = _pool(self.words)
        left = num_tokens - len(parts)
        while left > 0:
            taken = min(left, POOL_WORDS)
            at = source.randrange(POOL_WORDS - taken + 1)
            parts.append(pool[starts[at] : starts[at + taken] - 1])
            left -= taken
        return " ".join(parts)

    def prompt(self, num_tokens: int, source: random.Random) -> str:
        """A text that the server counts as `num_tokens`, its own special tokens included."""
        return self.text(num_tokens - self.extra_tokens, source)


@functools.cache
def _pool(words: tuple[str, ...]) -> tuple[str, list[int]]:
    """A long text of drawn words, and each word's start (plus the end of the last)."""
    drawn = random.Random("pool").choices(words, k=POOL_WORDS)
    starts = list(itertools.accumulate((len(word) + 1 for word in drawn), initial=0))
    return " ".join(drawn), starts


async def learn_filler(count_tokens: CountTokens) -> Filler:
    """Find words of one token each by asking a server; an estimate if it cannot tell."""
    anchor = await count_tokens(FIRST)
    if anchor is None:
        return Filler()
    counts = await asyncio.gather(*(count_tokens(FIRST + f" {word}" * TRIAL) for word in CANDIDATES))
    words = tuple(word for word, count in zip(CANDIDATES, counts, strict=True) if count == anchor + TRIAL)
    if len(words) < 16:
        return Filler()
    trial = await count_tokens(" ".join([FIRST, *words]))
    return Filler(words, anchor - 1, is_exact=trial == anchor + len(words))
