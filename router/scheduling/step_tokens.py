"""The tokens that a step brought to requests of one model, in sums: what observers need of them. Pure."""

import msgspec

from router.catalog.served_model import ServedModel
from shard.messages import TokenOutput


class StepTokens(msgspec.Struct):
    """Sums over the tokens appended to answers. Times are in seconds.

    Of tokens that came together each has an equal part of the time since the one before them.
    """

    served_model: ServedModel
    num_tokens: int = 0
    by_exit: dict[int, int] = {}  # tokens by exit layer
    gaps_s: dict[float, int] = {}  # tokens by the time since the one before
    ttfts_s: list[float] = []  # of first tokens, since their requests arrived

    def add(self, tokens: list[TokenOutput], arrived: float, last: float | None, now: float) -> None:
        """Add one request's tokens; `last` is the time of the one before them."""
        num_tokens = len(tokens)
        self.num_tokens += num_tokens
        by_exit = self.by_exit
        for token in tokens:
            by_exit[token.exit_layer] = by_exit.get(token.exit_layer, 0) + 1
        if last is None:
            self.ttfts_s.append(now - arrived)
        else:
            gap_s = (now - last) / num_tokens
            self.gaps_s[gap_s] = self.gaps_s.get(gap_s, 0) + num_tokens
