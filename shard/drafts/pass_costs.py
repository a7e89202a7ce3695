"""What a pass of so many rows costs on this machine, learned from the passes themselves. Pure.

Rows are the tokens of a pass: one for each sequence, and one for each draft. What another one costs depends
on the machine and on how many there are: nearly nothing while weights are what is read, and as much as any
other once arithmetic takes longer. Times are kept relative to the machine's present speed, so that a machine
that slows down for everything does not make drafts look dear.
"""

import math
from bisect import bisect_right

# Where times are kept: numbers of rows, and of drafts beside a number of sequences.
ROWS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024)
ADDED = (0, *(rows for rows in ROWS if rows <= 128))
# Rows that double the time of one, before any is measured: hopeful, so that drafts are tried.
PRIOR_ROWS = 32.0
SMOOTHING = 0.1
SPEED_SMOOTHING = 0.05
OUTLIER = 2.0  # a time so many times off counts as that


class Knots:
    """A curve over numbers, linear between a few at which values are learned."""

    def __init__(self, at: tuple[int, ...], values: list[float]):
        self._at = at
        self._values = values
        self._counts = [0.0] * len(at)

    def __call__(self, number: float) -> float:
        low, share = self._place(number)
        if share == 0:
            return self._values[low]
        return self._values[low] * (1 - share) + self._values[low + 1] * share

    def learn(self, number: float, value: float) -> None:
        """Move the values beside a number towards what was measured there."""
        low, share = self._place(number)
        error = value - self(number)
        for index, weight in ((low, 1 - share), (low + 1, share)):
            if weight:
                self._counts[index] += weight
                self._values[index] += error * weight * max(SMOOTHING, 1 / self._counts[index])

    def has(self, number: float) -> bool:
        """Something was measured beside it."""
        low, share = self._place(number)
        return self._counts[low] > 0 if share == 0 else min(self._counts[low : low + 2]) > 0

    def _place(self, number: float) -> tuple[int, float]:
        low = bisect_right(self._at, number) - 1
        if low >= len(self._at) - 1:
            return len(self._at) - 1, 0.0
        return low, (number - self._at[low]) / (self._at[low + 1] - self._at[low])


class PassCosts:
    """Milliseconds of passes, by their sequences, drafts, and prompts' tokens."""

    def __init__(self) -> None:
        self._speed = 0.0  # milliseconds of a pass of one row, as fast as the machine is now; 0: unknown
        self._of_rows = Knots(ROWS, [1 + rows / PRIOR_ROWS for rows in ROWS])
        self._beside: dict[int, Knots] = {}  # by number of sequences, over the number of drafts

    def ms(self, num_sequences: int, num_drafts: int, num_others: int = 0) -> float:
        """Expected milliseconds of a pass; `num_others` are tokens of prompts beside."""
        return (self._speed or 1.0) * self._relative(num_sequences, num_drafts, num_others)

    def note(self, num_sequences: int, num_drafts: int, num_others: int, ms: float) -> None:
        """A pass has taken so long."""
        relative = self._relative(num_sequences, num_drafts, num_others)
        if self._speed == 0:
            self._speed = ms / relative
        ratio = ms / (self._speed * relative)
        ratio = min(max(ratio, 1 / OUTLIER), OUTLIER)
        self._speed *= math.exp(SPEED_SMOOTHING * math.log(ratio))
        self._of_rows.learn(num_sequences + num_drafts + num_others, relative * ratio)
        if not num_others:
            self._near(num_sequences).learn(num_drafts, relative * ratio)

    def _relative(self, num_sequences: int, num_drafts: int, num_others: int) -> float:
        if num_others:
            return self._of_rows(num_sequences + num_drafts + num_others)
        near = self._near(num_sequences)
        if near.has(num_drafts):
            return near(num_drafts)
        more = self._of_rows(num_sequences + num_drafts) / self._of_rows(num_sequences)
        return near(0) * more

    def _near(self, num_sequences: int) -> Knots:
        """The curve of a number of sequences."""
        known = self._beside.get(num_sequences)
        if known is None:
            known = Knots(ADDED, [self._of_rows(num_sequences + added) for added in ADDED])
            self._beside[num_sequences] = known
        return known
