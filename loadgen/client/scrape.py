"""Reads the server's `/metrics` periodically during the load.

Parsing is cheap, since it runs on the measuring event loop: samples of the known families are summed over
labels, histogram buckets are skipped.
"""

import asyncio
from time import monotonic

import msgspec

from loadgen.client.client import Client

FAMILIES = ("tgi_", "vllm:", "helios_", "process_resident_memory_bytes")

# Meaning -> names in the servers' metrics; the first existing one is used.
ALIASES = {
    "running": ("helios_requests_running", "tgi_batch_current_size", "vllm:num_requests_running"),
    "waiting": ("helios_requests_waiting", "tgi_queue_size", "vllm:num_requests_waiting"),
    "kv_usage": ("vllm:kv_cache_usage_perc", "vllm:gpu_cache_usage_perc"),
    "kv_blocks": ("helios_kv_blocks",),
    "kv_blocks_free": ("helios_kv_blocks_free",),
    "preemptions": ("helios_preemptions_total", "vllm:num_preemptions_total"),
    "drafted": ("helios_drafted_tokens_total", "vllm:spec_decode_num_draft_tokens_total"),
    "accepted": ("helios_accepted_tokens_total", "vllm:spec_decode_num_accepted_tokens_total"),
    "joules": ("helios_joules_total",),
    "resident_bytes": ("process_resident_memory_bytes",),
}
QUEUE_TIMES = ("helios_queue_seconds", "tgi_request_queue_duration", "vllm:request_queue_time_seconds")


class Scrape(msgspec.Struct, frozen=True):
    """One reading. `at` is `time.monotonic()`."""

    at: float
    values: dict[str, float]

    def get(self, meaning: str) -> float | None:
        """A value by its meaning (`running`, `waiting`, ...)."""
        return next((self.values[name] for name in ALIASES[meaning] if name in self.values), None)


def parse_metrics(text: str) -> dict[str, float]:
    """Sums over labels of every sample of the known families."""
    values: dict[str, float] = {}
    for line in text.split("\n"):
        if not line.startswith(FAMILIES):
            continue
        name_and_labels, _, value = line.rpartition(" ")
        name = name_and_labels.partition("{")[0]
        if name.endswith(("_bucket", "_created")):
            continue
        try:
            values[name] = values.get(name, 0.0) + float(value)
        except ValueError:
            continue
    return values


def mean_queue_ms(first: Scrape, last: Scrape) -> float | None:
    """Mean queue time of the requests between two readings, from the server's own histogram."""
    for name in QUEUE_TIMES:
        count = last.values.get(f"{name}_count", 0.0) - first.values.get(f"{name}_count", 0.0)
        if count > 0:
            total_s = last.values[f"{name}_sum"] - first.values.get(f"{name}_sum", 0.0)
            return total_s / count * 1e3
    return None


class Scraper:
    """Reads `/metrics` at a fixed rate until stopped; does nothing without that route."""

    def __init__(self, client: Client, period_s: float = 1.0):
        self.scrapes: list[Scrape] = []
        self._client = client
        self._period_s = period_s

    async def run(self) -> None:
        while True:
            answer = await self._client.fetch("GET", "/metrics")
            if not answer.is_ok:
                return
            self.scrapes.append(Scrape(monotonic(), parse_metrics(answer.body.decode("utf-8", "replace"))))
            await asyncio.sleep(self._period_s)
