"""What one shard's prefix cache holds and has done, summed from its reports. Pure."""

import msgspec

from shard.messages import CacheReport


class CacheState(msgspec.Struct, frozen=True):
    """A shard's prefix cache in `/ops/state`: what it holds, and counts since the shard's start."""

    known_blocks: int = 0  # with content that may be found, in use or free
    cached_blocks: int = 0  # of these, the free ones
    queried_tokens: int = 0  # of prompts looked for
    hit_tokens: int = 0  # found: they were not computed again
    evicted_blocks: int = 0  # whose content was given up for other content
    cleared_blocks: int = 0  # whose content was given up on command
    mean_evicted_age_ms: float | None = None  # from their last use, of those evicted; None: none was
    mean_reuse_gap_ms: float | None = None  # from their last use, of free ones found again


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
