"""Decides when rows that stay at the first exit go deep: at once, or together with later ones.

A deep pass costs nearly the same for few rows as for many, so gathering rows makes each cheaper; meanwhile
the shallow passes have fewer rows (DREX, 2512.15705). Pure.
"""

MAX_WAIT_STEPS = 8
SMOOTHING = 0.1
FORGETTING = 0.97  # weight of earlier passes at each new one


class FixedCost:
    """The part of a pass's time that does not grow with its tokens: a line through recent passes."""

    def __init__(self) -> None:
        self._weight = self._tokens = self._ms = self._tokens2 = self._tokens_ms = 0.0

    def note(self, num_tokens: int, ms: float) -> None:
        """Note one pass."""
        for name, value in (
            ("_weight", 1.0),
            ("_tokens", num_tokens),
            ("_ms", ms),
            ("_tokens2", num_tokens**2),
            ("_tokens_ms", num_tokens * ms),
        ):
            setattr(self, name, getattr(self, name) * FORGETTING + value)

    @property
    def ms(self) -> float | None:
        """Fixed milliseconds per pass; the mean time while all passes are alike, None before the first."""
        if not self._weight:
            return None
        mean, tokens = self._ms / self._weight, self._tokens / self._weight
        spread = self._tokens2 / self._weight - tokens**2
        if spread < 0.01 * tokens**2:
            return mean
        slope = (self._tokens_ms / self._weight - tokens * mean) / spread
        return min(max(mean - slope * tokens, 0.0), mean)


class Deferral:
    """Measures passes and the share that stays, and says how many rows are worth a deep pass."""

    def __init__(self) -> None:
        self._shallow = FixedCost()
        self._deep = FixedCost()
        self._stay_share: float | None = None

    def note_shallow(self, num_tokens: int, ms: float) -> None:
        """Note a pass up to the first exit, with the draw of rows that leave."""
        self._shallow.note(num_tokens, ms)

    def note_vote(self, num_voters: int, num_staying: int) -> None:
        """Note how many rows stayed at the first exit."""
        share = num_staying / num_voters
        before = self._stay_share
        self._stay_share = share if before is None else before + SMOOTHING * (share - before)

    def note_deep(self, num_tokens: int, ms: float) -> None:
        """Note a step's passes beyond the first exit, and the tokens that entered them."""
        self._deep.note(num_tokens, ms)

    def wanted(self, num_rows: int) -> float:
        """Rows to gather for a deep pass, of `num_rows` in flight; 0 while nothing is known.

        Each shallow pass has the rows that left in the one before it. After m passes the share
        1 - (1 - stay)^m of all rows waits, and the tokens made are that share times 1 / stay. The fixed cost
        is that of m shallow passes and one deep pass; the best m minimises it per token. The number of rows
        is taken at m - 1/2 steps: arrivals are random, and m steps is then the likeliest wait.
        """
        shallow_ms, deep_ms, stay = self._shallow.ms, self._deep.ms, self._stay_share
        if not shallow_ms or deep_ms is None or not stay:
            return 0.0
        leave = 1 - stay
        steps = range(1, MAX_WAIT_STEPS + 1)
        best = min(steps, key=lambda m: (m * shallow_ms + deep_ms) / (1 - leave**m))
        return num_rows * (1 - leave ** (best - 0.5)) if best > 1 else 0.0
