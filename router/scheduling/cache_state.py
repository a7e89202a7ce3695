"""What one shard's prefix cache holds and has done, summed from its reports. Pure."""

from shard.messages import CacheReport
from telemetry.snapshot import CacheState


class CacheTotals:
    """Sums a shard's reports."""

    def __init__(self) -> None:
        self._sums = CacheReport()

    def add(self, report: CacheReport) -> None:
        before = self._sums
        self._sums = CacheReport(
            queried_tokens=before.queried_tokens + report.queried_tokens,
            hit_tokens=before.hit_tokens + report.hit_tokens,
            evicted_blocks=before.evicted_blocks + report.evicted_blocks,
            cached_blocks=report.cached_blocks,
            known_blocks=report.known_blocks,
            cleared_blocks=before.cleared_blocks + report.cleared_blocks,
            evicted_age_ms=before.evicted_age_ms + report.evicted_age_ms,
            reused_blocks=before.reused_blocks + report.reused_blocks,
            reused_gap_ms=before.reused_gap_ms + report.reused_gap_ms,
        )

    @property
    def state(self) -> CacheState:
        sums = self._sums
        return CacheState(
            sums.known_blocks,
            sums.cached_blocks,
            sums.queried_tokens,
            sums.hit_tokens,
            sums.evicted_blocks,
            sums.cleared_blocks,
            _mean(sums.evicted_age_ms, sums.evicted_blocks),
            _mean(sums.reused_gap_ms, sums.reused_blocks),
        )


def _mean(total: float, count: int) -> float | None:
    return round(total / count, 1) if count else None
