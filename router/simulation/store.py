"""A telemetry store in memory, in virtual time, in place of Redis."""

import asyncio

from telemetry.store import Store
from telemetry.window import Record


class MemoryStore(Store):
    """The store of one router. Forgets windows older than `kept_s`."""

    def __init__(self, kept_s: float = 60.0) -> None:
        super().__init__(None, "scale", "router")
        self._kept_s = kept_s
        self._records: list[Record] = []

    def now_s(self) -> float:
        return asyncio.get_running_loop().time()

    def put(self, records: list[Record]) -> None:
        self._records = [
            record for record in self._records if record.window.end > self.now_s() - self._kept_s
        ]
        self._records += records

    async def flush(self) -> bool:
        for gather in self.on_flush:
            gather()
        return True

    async def records(self, last_s: float) -> list[Record] | None:
        since = self.now_s() - last_s
        return [record for record in self._records if record.window.end > since]
