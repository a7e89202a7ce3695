"""Upper bounds on an exit mode's speed, if only layers, heads and KV fill cost time. Pure.

Parts are measured alone for several numbers of tokens; a bound combines them as the mode would at best.
"""

from itertools import accumulate, pairwise

import msgspec

from shard.exits.deferral import MAX_WAIT_STEPS
from shard.messages import Fill, Mode


class Curve(msgspec.Struct, frozen=True):
    """Milliseconds of a pass by number of tokens: measured (tokens, ms), with linear interpolation."""

    points: list[tuple[int, float]]  # by rising number of tokens

    def __call__(self, num_tokens: float) -> float:
        """Milliseconds for any number of tokens; extrapolated beyond the last point."""
        if len(self.points) == 1 or num_tokens <= self.points[0][0]:
            return self.points[0][1]
        (low, low_ms), (high, high_ms) = next(
            (pair for pair in pairwise(self.points) if num_tokens <= pair[1][0]), (self.points[-2:])
        )
        return low_ms + (high_ms - low_ms) * (num_tokens - low) / (high - low)


class Times(msgspec.Struct, frozen=True):
    """Times of a step's parts."""

    segments: list[Curve]
    head: Curve
    fill_token_ms: list[float]  # of one projected token, by segment

    def full_ms(self, num_rows: float) -> float:
        """A step at full depth."""
        return sum(segment(num_rows) for segment in self.segments) + self.head(num_rows)


class Stream(msgspec.Struct, frozen=True):
    """Exit statistics. `shares`, by segment: the tokens that exit behind it, the last at full depth."""

    shares: list[float]
    batch_size: int
    fill: Fill

    @property
    def reach(self) -> list[float]:
        """The share of tokens that enter each segment."""
        return [1.0, *(1 - share for share in list(accumulate(self.shares))[:-1])]


def bound_of(mode: Mode, times: Times, stream: Stream) -> float | None:
    """Upper bound of the speed-up over full depth; None if the mode is not modelled."""
    full = times.full_ms(stream.batch_size)
    if mode is Mode.CAPPED:
        return full / (times.segments[0](stream.batch_size) + times.head(stream.batch_size))
    if mode is Mode.SYNCHRONIZED:
        return full / min(_synchronized_ms(times, stream), full)
    if mode is Mode.PER_ROW:
        gathered = (_gathered_ms(times, stream, steps) for steps in range(1, MAX_WAIT_STEPS + 1))
        return full / min(*gathered, full)
    return None


def _synchronized_ms(times: Times, stream: Stream) -> float:
    """Milliseconds of a step whose rows leave together once the last has passed."""
    size = stream.batch_size
    shares = list(accumulate(stream.shares))
    chances = [1.0, *(1 - share**size for share in shares[:-1])]
    ms = times.head(size)
    for segment, chance in enumerate(chances):
        pending = size * (1 - chance) / chance if chance else 0.0
        ms += chance * _pass_ms(times, stream.fill, segment, size, pending)
    return ms


def _gathered_ms(times: Times, stream: Stream, num_steps: int) -> float:
    """Milliseconds for a token of every row, if rows at the first exit wait for `num_steps` shallow passes.

    Each pass has the rows that left in the previous one; then all waiting rows go deep, with pending tokens.
    """
    stay = stream.reach[1]
    sizes = [stream.batch_size * (1 - stay) ** step for step in range(num_steps)]
    left, gathered = [size * (1 - stay) for size in sizes], sum(sizes) * stay
    num_tokens = sum(left) + gathered
    ms = sum(times.segments[0](size) for size in sizes)
    ms += sum(times.head(size) for size in left[:-1]) + times.head(left[-1] + gathered)
    for segment, share in list(enumerate(stream.reach))[1:]:
        rows = gathered * share / stay
        ms += _pass_ms(times, stream.fill, segment, rows, num_tokens - rows)
    return ms * stream.batch_size / num_tokens


def _pass_ms(times: Times, fill: Fill, segment: int, rows: float, pending: float) -> float:
    """Milliseconds of a segment's pass, with pending tokens; fewer than one row is the probability of one."""
    chance = min(rows, 1.0)
    if chance == 0:
        return 0.0
    rows, pending = rows / chance, pending / chance
    if fill is Fill.RECOMPUTE:
        return chance * times.segments[segment](rows + pending)
    return chance * (times.segments[segment](rows) + pending * times.fill_token_ms[segment])
