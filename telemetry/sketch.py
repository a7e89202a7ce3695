"""A mergeable quantile sketch of times with logarithmic buckets: DDSketch (Masson et al., 2019).

Implemented here because the published package needs protobuf and has no bounded range; with fixed buckets,
merging is exact.
"""

import math

import msgspec

RELATIVE_ERROR = 0.02
LEAST_MS = 0.01  # shorter times count as this
MOST_MS = 1e7  # longer times count as this
_GAMMA = (1 + RELATIVE_ERROR) / (1 - RELATIVE_ERROR)
_PER_LOG = 1 / math.log(_GAMMA)


class Sketch(msgspec.Struct, array_like=True):
    """Counts by bucket: bucket i holds times in (gamma^(i-1), gamma^i] milliseconds; some 520 at most."""

    counts: dict[int, int] = {}

    def add(self, ms: float, count: int = 1) -> None:
        bucket = math.ceil(math.log(min(max(ms, LEAST_MS), MOST_MS)) * _PER_LOG)
        self.counts[bucket] = self.counts.get(bucket, 0) + count

    def merge(self, other: "Sketch") -> None:
        """Add the other's counts."""
        for bucket, count in other.counts.items():
            self.counts[bucket] = self.counts.get(bucket, 0) + count

    @property
    def num(self) -> int:
        return sum(self.counts.values())

    def quantile(self, share: float) -> float | None:
        """Milliseconds at rank share x (n - 1), within 2%; None without counts."""
        rank = math.floor(share * (self.num - 1))
        for bucket in sorted(self.counts):
            rank -= self.counts[bucket]
            if rank < 0:
                return 2 * _GAMMA**bucket / (_GAMMA + 1)
        return None
