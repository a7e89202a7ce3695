"""Where a sequence has said something before: its longest recent match, as LZ77 finds it.

Hash chains over pairs of tokens, as in zlib's deflate: `_newest` has the last place of a pair's hash, and
`_before` for each place the one before. A few places are compared, so that a token takes constant time. The
draft is what followed there (prompt lookup, Saxena 2023).
"""

from array import array

NUM_COMPARED = 8  # places
LONGEST_MATCH = 32  # tokens; a longer match is not told from this
_FEWEST, _MOST = 8, 14  # slots of the table, as powers of two


class OwnText:
    """The index of one sequence's tokens, which stay with it."""

    def __init__(self, max_tokens: int):
        bits = min(max(max_tokens.bit_length(), _FEWEST), _MOST)
        self._mask = (1 << bits) - 1
        self._newest = array("i", [0]) * (1 << bits)  # 0: none, as no pair stands before it
        self._before = array("i", [0, 0])

    @property
    def num_tokens(self) -> int:
        """Tokens it knows."""
        return len(self._before)

    def extend(self, token_ids: list[int]) -> None:
        """Enter the tokens that came since, each as what follows the pair before it."""
        for place in range(len(self._before), len(token_ids)):
            slot = self._slot(token_ids[place - 2], token_ids[place - 1])
            self._before.append(self._newest[slot])
            self._newest[slot] = place

    def find(self, token_ids: list[int], length: int) -> tuple[list[int], int]:
        """Up to `length` tokens that followed the longest match of the end, and the match's length."""
        end = len(token_ids)
        if end < 3:
            return [], 0
        place, best, at = self._newest[self._slot(token_ids[-2], token_ids[-1])], 1, 0
        for _ in range(NUM_COMPARED):
            if place == 0:
                break
            matched = _common(token_ids, place, end)
            if matched > best:
                best, at = matched, place
            place = self._before[place]
        if not at:
            return [], 0
        found = token_ids[at : at + length]
        while len(found) < length:  # a match that reaches the end goes on with what it has said
            found += found[: length - len(found)]
        return found, best

    def _slot(self, first: int, second: int) -> int:
        return ((first * 0x9E3779B1 ^ second * 0x85EBCA6B) >> 7) & self._mask


def _common(token_ids: list[int], place: int, end: int) -> int:
    """Number of equal tokens before two places."""
    matched, most = 0, min(LONGEST_MATCH, place)
    while matched < most and token_ids[place - 1 - matched] == token_ids[end - 1 - matched]:
        matched += 1
    return matched
