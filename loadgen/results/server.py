"""The server's own figures under load: its metrics and its candidates."""

from typing import Any

import msgspec

from loadgen.client.scrape import Scrape, mean_queue_ms
from loadgen.load.run import Run


class ServerSays(msgspec.Struct, frozen=True):
    """The server's own figures; None if not reported."""

    most_running: float | None
    most_waiting: float | None
    most_kv_usage: float | None  # share of the KV cache
    preemptions: float | None  # during the run
    drafted: float | None  # tokens of drafts, likewise
    accepted: float | None  # those that the model says too
    mean_queue_ms: float | None  # of the requests of the run
    joules: float | None  # during the run
    most_resident_bytes: float | None
    candidates: list[dict[str, Any]]  # rows of /ops/state: speed and agreement by candidate and depth

    @property
    def is_silent(self) -> bool:
        return not self.candidates and all(value is None for value in msgspec.structs.astuple(self)[:-1])


def server_says(run: Run) -> ServerSays:
    scrapes = run.scrapes
    return ServerSays(
        most_running=_most(scrapes, "running"),
        most_waiting=_most(scrapes, "waiting"),
        most_kv_usage=_most_kv_usage(scrapes),
        preemptions=_gained(scrapes, "preemptions"),
        drafted=_gained(scrapes, "drafted"),
        accepted=_gained(scrapes, "accepted"),
        mean_queue_ms=mean_queue_ms(scrapes[0], scrapes[-1]) if scrapes else None,
        joules=_gained(scrapes, "joules"),
        most_resident_bytes=_most(scrapes, "resident_bytes"),
        candidates=[row for row in run.state.get("candidates") or [] if isinstance(row, dict)],
    )


def _most(scrapes: list[Scrape], meaning: str) -> float | None:
    return max((value for scrape in scrapes if (value := scrape.get(meaning)) is not None), default=None)


def _gained(scrapes: list[Scrape], meaning: str) -> float | None:
    known = [value for scrape in scrapes if (value := scrape.get(meaning)) is not None]
    return known[-1] - known[0] if known else None


def _most_kv_usage(scrapes: list[Scrape]) -> float | None:
    """Greatest KV cache usage, reported as a share or by free blocks."""
    usage = _most(scrapes, "kv_usage")
    if usage is not None:
        return usage
    pairs = [(scrape.get("kv_blocks"), scrape.get("kv_blocks_free")) for scrape in scrapes]
    return max((1 - free / total for total, free in pairs if total and free is not None), default=None)
