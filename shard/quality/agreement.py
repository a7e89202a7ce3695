"""Statistics of answers: agreement of their tokens with full depth's, and perplexity under full depth.

Kept as sums, so that any number of answers can be added. Tokens of one answer are correlated, so intervals
use the effective number of tokens, by the variance between answers. Imports msgspec alone, since the router
computes the same statistics of live answers.
"""

import math
from collections.abc import Iterable, Sequence

import msgspec

_Z = 1.959964  # 95%


class Share(msgspec.Struct, frozen=True):
    """Agreement over some tokens, with the bounds of its 95% interval."""

    tokens: int
    agreeing: int
    agreement: float
    low: float
    high: float


class Report(msgspec.Struct, frozen=True):
    """Statistics of all answers added so far; None without any."""

    sequences: int = 0
    overall: Share | None = None
    by_exit: dict[int, Share] = {}  # by exit layer
    perplexity: float | None = None  # of the answers under the full model


class Sums:
    """Sums over answers of tokens n and agreeing tokens a, for the variance of their ratio."""

    def __init__(
        self, num_answers: int = 0, n: int = 0, a: int = 0, nn: int = 0, aa: int = 0, an: int = 0
    ) -> None:
        self.num_answers, self.n, self.a, self.nn, self.aa, self.an = num_answers, n, a, nn, aa, an

    def add(self, n: int, a: int) -> None:
        self.num_answers += 1
        self.n += n
        self.a += a
        self.nn += n * n
        self.aa += a * a
        self.an += a * n

    @property
    def num_effective(self) -> float:
        """Effective number of independent tokens (Kish's design effect of a ratio of sums)."""
        share = self.a / self.n
        if self.num_answers < 2:
            return 1.0
        independent = share * (1 - share) / self.n
        residual = max(0.0, self.aa - 2 * share * self.an + share * share * self.nn)
        between = residual * self.num_answers / (self.num_answers - 1) / self.n**2
        if not independent or between <= independent:
            return float(self.n)
        return self.n * independent / between

    def share(self) -> Share:
        p = self.a / self.n
        low, high = wilson(p, self.num_effective)
        return Share(self.n, self.a, p, low, high)


def wilson(share: float, count: float) -> tuple[float, float]:
    """The 95% interval of a share seen in `count` independent trials (Wilson 1927)."""
    z2 = _Z * _Z
    middle = (share + z2 / (2 * count)) / (1 + z2 / count)
    half = _Z * math.sqrt(share * (1 - share) / count + z2 / (4 * count * count)) / (1 + z2 / count)
    return max(0.0, min(share, middle - half)), min(1.0, max(share, middle + half))


class Agreement:
    """Accumulates statistics of answers."""

    def __init__(self) -> None:
        self._overall = Sums()
        self._by_exit: dict[int, Sums] = {}
        self._logprob = 0.0
        self._num_logprobs = 0

    def add(self, tokens: Iterable[tuple[int | None, bool]], logprobs: Sequence[float]) -> None:
        """Add one answer: (exit layer, agrees) of its tokens, and the full model's log-probabilities.

        Tokens of an unknown layer, None, count in the total only.
        """
        layers: dict[int | None, list[bool]] = {}
        for layer, agrees in tokens:
            layers.setdefault(layer, []).append(agrees)
        for layer, found in layers.items():
            if layer is not None:
                self._by_exit.setdefault(layer, Sums()).add(len(found), sum(found))
        everywhere = [agrees for found in layers.values() for agrees in found]
        if everywhere:
            self._overall.add(len(everywhere), sum(everywhere))
        self._logprob += sum(logprobs)
        self._num_logprobs += len(logprobs)

    def report(self) -> Report:
        sums = self._overall
        perplexity = None
        if self._num_logprobs:
            perplexity = math.exp(min(700.0, -self._logprob / self._num_logprobs))  # e^700 is still a number
        return Report(
            sums.num_answers,
            sums.share() if sums.n else None,
            {layer: self._by_exit[layer].share() for layer in sorted(self._by_exit)},
            perplexity,
        )
