"""Reads overviews of a deployment from Redis, one after the other; each reads only what is new.

Ages come from Redis' clock: a router's own may differ from the reader's.
"""

import asyncio
import time
from collections import deque

import msgspec

from telemetry import keys, snapshot, tick
from telemetry.audit import Decision
from telemetry.history import History
from telemetry.overview import (
    ALIVE_S,
    SPAN_S,
    Overview,
    RouterRow,
    ShardFigures,
    ShardRow,
    TimedTick,
    figures_of,
    shard_figures,
    visible,
)
from telemetry.snapshot import Snapshot
from telemetry.store import Store

NUM_DECISIONS = 50


class OverviewReader:
    """`read` as often as wanted, one at a time. A router gives its own store, others one never started."""

    def __init__(self, store: Store):
        self._store = store
        self._ticks: dict[str, deque[TimedTick]] = {}  # by router
        self._last_ids: dict[str, bytes] = {}  # of ticks read, by router

    async def read(self) -> Overview | None:
        """None while Redis is away, unless the store is a router's: then what that router knows alone."""
        deployment = self._store.deployment
        answers = await self._store.link.ask(
            lambda pipe: (
                pipe.zrange(keys.routers(deployment), 0, -1, withscores=True),
                pipe.hgetall(keys.history(deployment)),
            )
        )
        if answers is None:
            return await self._own()
        scores = {name.decode(errors="replace"): score for name, score in answers[0]}
        rows = await self._rows(scores)
        if rows is None:
            return await self._own()
        history = History()
        history.learn(answers[1])
        now = max(scores.values(), default=time.time())
        return self._overview(rows, now, history, await self._store.decisions(NUM_DECISIONS))

    async def _rows(self, scores: dict[str, float]) -> list[RouterRow] | None:
        """The routers' snapshots; reads their ticks on. None while Redis is away."""
        deployment, names = self._store.deployment, list(scores)
        since = {name: self._since(name) for name in names}
        answers = await self._store.link.ask(
            lambda pipe: [
                (
                    pipe.get(keys.snapshot(deployment, name)),
                    pipe.pttl(keys.snapshot(deployment, name)),
                    pipe.xrange(keys.ticks(deployment, name), since[name]),
                )
                for name in names
            ]
        )
        if answers is None:
            return None
        parts = [answers[index : index + 3] for index in range(0, len(answers), 3)]
        self._forget({*names})
        for name, (_, _, entries) in zip(names, parts, strict=True):
            await self._learn(name, entries)
        self._drop_old(max(scores.values(), default=0.0))
        rows = [row for data, ttl_ms, _ in parts if (row := _router_row(data, ttl_ms)) is not None]
        own = self._own_row()  # which is newer than what was flushed
        return rows if own is None else [own, *(r for r in rows if r.snapshot.router != self._store.router)]

    def _own_row(self) -> RouterRow | None:
        """The router that this process is, as of now; None elsewhere."""
        return None if self._store.describe is None else RouterRow(0.0, True, self._store.describe())

    def _since(self, router: str) -> str:
        """From which entry on to read a router's ticks."""
        ms, _, number = self._last_ids.get(router, b"0-0").decode().partition("-")
        return f"{ms}-{int(number) + 1}"

    async def _learn(self, router: str, entries: list[tuple[bytes, dict[bytes, bytes]]]) -> None:
        if entries:
            ticks = await asyncio.to_thread(_ticks, entries)  # may be large, and must not delay tokens
            self._ticks.setdefault(router, deque()).extend(ticks)
            self._last_ids[router] = entries[-1][0]

    def _forget(self, known: set[str]) -> None:
        for gone in self._last_ids.keys() - known:
            del self._last_ids[gone]
            self._ticks.pop(gone, None)

    def _drop_old(self, now: float) -> None:
        for ticks in self._ticks.values():
            while ticks and ticks[0][0] <= now - SPAN_S:
                ticks.popleft()

    def _overview(
        self, rows: list[RouterRow], now: float, history: History, decisions: list[Decision]
    ) -> Overview:
        shown = visible(rows)
        total, *models = figures_of((one for ticks in self._ticks.values() for one in ticks), now)
        return Overview(
            at=time.time(),
            deployment=self._store.deployment,
            router="" if self._store.describe is None else self._store.router,
            routers=[_without_shards(row) for row in shown],
            shards=[shard for row in shown for shard in self._shards(row, now)],
            total=total,
            models=models,
            history=history.rows(),
            decisions=decisions,
        )

    def _shards(self, row: RouterRow, now: float) -> list[ShardRow]:
        name = row.snapshot.router
        figures = shard_figures(self._ticks.get(name, ()), now)
        idle = ShardFigures()
        return [ShardRow(name, shard, figures.get(shard.id, idle)) for shard in row.snapshot.shards]

    async def _own(self) -> Overview | None:
        """What this process knows without Redis; None if it is no router."""
        row = self._own_row()
        if row is None:
            return None
        own = row.snapshot
        return Overview(
            at=time.time(),
            deployment=self._store.deployment,
            router=own.router,
            redis="lost",
            routers=[_without_shards(row)],
            shards=[ShardRow(own.router, shard) for shard in own.shards],
            history=self._store.history.rows(),
            decisions=await self._store.decisions(NUM_DECISIONS),
        )


def _ticks(entries: list[tuple[bytes, dict[bytes, bytes]]]) -> list[TimedTick]:
    """Ticks of a stream's entries, without those in another version's format."""
    decoded = ((id, tick.decode(fields.get(b"d", b""))) for id, fields in entries)
    return [(int(id.partition(b"-")[0]) / 1000, found) for id, found in decoded if found is not None]


def _router_row(data: bytes | None, ttl_ms: int) -> RouterRow | None:
    found: Snapshot | None = None if data is None else snapshot.decode(data)
    if found is None:
        return None
    age_s = max(0.0, keys.SNAPSHOT_TTL_S - ttl_ms / 1000)
    return RouterRow(age_s, age_s <= ALIVE_S, found)


def _without_shards(row: RouterRow) -> RouterRow:
    """The row whose snapshot's shards are listed beside it."""
    return msgspec.structs.replace(row, snapshot=msgspec.structs.replace(row.snapshot, shards=[]))
