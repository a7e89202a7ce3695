"""A deployment's telemetry in Redis: written by each router, read by all.

Writes go into bounded memory; one pipeline per second moves them to Redis and reads other routers' history.
While Redis is away the memory fills; what exceeds it is dropped and counted. History and decisions are
written again to a Redis that comes back, even an empty one.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Iterable

import msgspec

from telemetry import audit, keys, snapshot, tasks, tick
from telemetry.audit import AuditLog, Decision, Outcome
from telemetry.history import History
from telemetry.link import Link, Pipeline
from telemetry.outbox import Entry, Outbox
from telemetry.past_windows import PastWindows, begun_between, data_of
from telemetry.rollup import CandidateSum, Resolution, Rollup, StepEntry, field_of, summed
from telemetry.snapshot import Snapshot
from telemetry.window import Record

log = logging.getLogger(__name__)

FLUSH_INTERVAL_S = 1.0
MAX_WAITING_BYTES = 4 * 1024 * 1024
_LONGEST_READ_S = 900.0
_CLOCK_SKEW_S = 60.0  # allowed between routers and Redis
_MAX_SEARCHED = 4000  # entries
_MAX_SETTLED = 50  # decisions
SETTLE_EVERY = 30  # flushes
RESOLUTIONS = (  # each step a multiple of the first
    Resolution(step_s=5, hash_s=300, kept_s=keys.HOUR_S),
    Resolution(step_s=60, hash_s=keys.HOUR_S, kept_s=keys.DAY_S),
)
_SILENCE_S = 30.0  # after which a router counts as ended
_ENDED = "The router ended before it was done."

_encode = msgspec.msgpack.Encoder().encode


class Store:
    """`start`, then `put`, `audit` and `history` until `stop`. Without a URL nothing is stored.

    `on_flush` is called before each flush, for collectors to `put` their records.
    """

    def __init__(
        self,
        url: str | None,
        deployment: str,
        router: str,
        flush_interval_s: float = FLUSH_INTERVAL_S,
        max_waiting_bytes: int = MAX_WAITING_BYTES,
    ):
        """Raises `ValueError` for a malformed URL."""
        self.deployment = deployment
        self.router = router
        self.audit = AuditLog(router)
        self.history = History()
        self.on_flush: list[Callable[[], None]] = []
        self.describe: Callable[[], Snapshot] | None = (
            None  # what this router does now; written with each flush
        )
        self._flush_interval_s = flush_interval_s
        self.windows = Outbox(max_waiting_bytes)
        self.rollups = tuple(map(Rollup, RESOLUTIONS))
        self._last_id = 0
        self.link = Link(url)
        self._past = PastWindows(self.link, deployment)
        self._num_flushes = 0
        self._is_known = False  # Redis knew this router at the last flush
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Start flushing; returns after the first attempt, which loads the history."""
        await self.flush()
        self._task = tasks.begin(self._keep_flushing(), "Telemetry")

    async def stop(self) -> None:
        """Write pending data, if Redis answers. Idempotent."""
        if self._task is not None:
            await tasks.cancel(self._task)
            self._task = None
            await self.flush()
        await self.link.close()

    @property
    def is_ok(self) -> bool:
        """The last flush succeeded."""
        return self._is_known and self.trouble is None

    @property
    def trouble(self) -> str | None:
        """Why Redis is unavailable; None if it is available."""
        return self.link.trouble

    @property
    def num_dropped(self) -> int:
        """Windows and decisions dropped while Redis was away."""
        return self.windows.num_dropped + self.audit.num_dropped

    def put(self, records: list[Record]) -> None:
        """Store records of this router's shards since the last `put`."""
        if records:
            self._last_id = max(self._last_id + 1, int(time.time() * 1000))
            sums = summed(records, RESOLUTIONS[0].step_s)
            told = tick.encode(records, sums)
            self.windows.put(Entry(_encode(records), f"{self._last_id}-0", len(records), told))
            for rollup in self.rollups:
                rollup.add(sums)

    async def flush(self) -> bool:
        """Write pending data in one pipeline, and read other routers' history. False if Redis is away."""
        for gather in self.on_flush:
            gather()
        return await self._flush()

    async def records(self, last_s: float) -> list[Record] | None:
        """Records of all routers' shards in the last `last_s` seconds; None while Redis is away.

        This router's records are as of the last flush. Looks back a quarter of an hour at most.
        """
        return await self._past.since(time.time() - min(last_s, _LONGEST_READ_S))

    async def between(self, since: float, until: float) -> list[Record] | None:
        """All routers' windows that began in [since, until), Unix time; None while Redis is away."""
        return await self._past.between(since, until)

    async def sums(self, rollup: Rollup, since: float, until: float) -> list[CandidateSum] | None:
        """Sums of all routers' steps that began in [since, until); None while Redis is away."""
        return await self._past.sums(rollup.resolution, since, until)

    def waiting(self, since: float, until: float) -> list[Record]:
        """Those of them that this router has not written to Redis yet."""
        return begun_between([entry.data for entry in self.windows.peek()], since, until)

    async def decisions(self, limit: int = 50, since: float = 0.0) -> list[Decision]:
        """The latest decisions of all routers, the latest first; only this router's while Redis is away.

        `since`: only decisions taken later than this Unix time in seconds.
        """
        key, count = keys.decisions(self.deployment), audit.ENTRIES_PER_DECISION * limit
        answers = await self.link.ask(lambda pipe: pipe.xrevrange(key, count=count))
        entries = reversed(answers[0]) if answers else []
        found = [decision for decision in self._all_known(entries) if decision.at > since]
        return found[:limit]

    async def decision(self, id: str) -> Decision | None:
        """One decision; None if unknown or forgotten."""
        own = self.audit.find(id)
        if own is not None and own.router == self.router:
            return own
        since = audit.time_of(id)
        if since is None:
            return None
        key, first = keys.decisions(self.deployment), max(0, int((since - _CLOCK_SKEW_S) * 1000))
        answers = await self.link.ask(lambda pipe: pipe.xrange(key, f"{first}-0", count=_MAX_SEARCHED))
        found = self._all_known(answers[0] if answers else [])
        return next((decision for decision in found if decision.id == id), None)

    def _all_known(self, entries: Iterable[tuple[bytes, dict[bytes, bytes]]]) -> list[Decision]:
        """Decisions of the stream and of this router, whose own copy wins; the latest first."""
        decoded = (audit.decode(data_of(fields)) for _, fields in entries)
        written = [decision for decision in decoded if decision is not None]
        own = [decision for decision in reversed(self.audit.latest()) if decision.router == self.router]
        return audit.settled([*written, *own])

    async def _settle_abandoned(self) -> None:
        """Settle pending decisions of routers that have ended."""
        answers = await self.link.ask(
            lambda pipe: pipe.zrangebyscore(keys.routers(self.deployment), time.time() - _SILENCE_S, "+inf")
        )
        if answers is None:
            return
        alive = {name.decode(errors="replace") for name in answers[0]} | {self.router}
        for decision in await self.decisions(_MAX_SETTLED):
            if decision.outcome is None and decision.router not in alive:
                self.audit.append(
                    msgspec.structs.replace(decision, outcome=Outcome.ROLLED_BACK, error=_ENDED)
                )

    async def _keep_flushing(self) -> None:
        loop = asyncio.get_running_loop()
        due = loop.time()
        while True:
            due = max(due + self._flush_interval_s, loop.time())
            await asyncio.sleep(due - loop.time())
            try:
                await self._flush_and_settle()
            except Exception:
                log.exception("Telemetry was not kept; serving goes on.")

    async def _flush_and_settle(self) -> None:
        if await self.flush():
            self._num_flushes += 1
            if self._num_flushes % SETTLE_EVERY == 0:
                await self._settle_abandoned()

    async def _flush(self) -> bool:
        entries, decisions, rows = self.windows.peek(), self.audit.unwritten(), self.history.unwritten()
        steps = [rollup.unwritten() for rollup in self.rollups]
        described = None if self.describe is None else snapshot.encode(self.describe())

        def write(pipe: Pipeline) -> None:
            self._write_presence(pipe)
            self._write_windows(pipe, entries)
            self._write_rollups(pipe, steps)
            self._write_decisions(pipe, decisions)
            if described is not None:
                key = keys.snapshot(self.deployment, self.router)
                pipe.set(key, described, px=1000 * keys.SNAPSHOT_TTL_S)
            self._exchange_history(pipe, rows)

        answers = await self.link.ask(write)
        if answers is None:
            return False
        self.link.note_success()
        self.windows.written(entries)
        for rollup, written in zip(self.rollups, steps, strict=True):
            rollup.written(written)
        self.audit.written(decisions)
        if answers[0] and self._is_known:  # it has lost our presence, so all data
            self.audit.write_again()
        self._is_known = True
        self.history.learn(answers[-1])
        return True

    def _write_presence(self, pipe: Pipeline) -> None:
        """Write this router's presence; Redis answers 1 if it was unknown."""
        key, now = keys.routers(self.deployment), time.time()
        pipe.zadd(key, {self.router: now})
        pipe.zremrangebyscore(key, "-inf", now - keys.ROUTERS_TTL_S)
        pipe.expire(key, keys.ROUTERS_TTL_S)

    def _write_windows(self, pipe: Pipeline, entries: list[Entry]) -> None:
        windows = keys.windows(self.deployment, self.router)
        ticks = keys.ticks(self.deployment, self.router)
        for entry in entries:
            most = min(keys.MAX_WINDOW_ENTRIES, 1 + keys.MAX_WINDOW_BYTES // len(entry.data))
            pipe.xadd(windows, {"d": entry.data}, id=entry.id, maxlen=most)
            pipe.xadd(ticks, {"d": entry.tick}, id=entry.id, maxlen=keys.MAX_TICK_ENTRIES)
        pipe.expire(windows, keys.WINDOWS_TTL_S)
        pipe.expire(ticks, keys.WINDOWS_TTL_S)

    def _write_rollups(self, pipe: Pipeline, steps: list[list[StepEntry]]) -> None:
        for rollup, entries in zip(self.rollups, steps, strict=True):
            kept = rollup.resolution
            for entry in entries:
                key = keys.rollup(self.deployment, kept.step_s, entry.start // kept.hash_s)
                pipe.hset(key, field_of(entry.start, self.router), entry.data)
                pipe.expire(key, kept.kept_s + kept.hash_s)

    def _write_decisions(self, pipe: Pipeline, decisions: list[Decision]) -> None:
        key = keys.decisions(self.deployment)
        for decision in decisions:
            pipe.xadd(key, {"d": audit.encode(decision)}, maxlen=keys.MAX_DECISIONS)
        pipe.expire(key, keys.DECISIONS_TTL_S)

    def _exchange_history(self, pipe: Pipeline, rows: dict[str, bytes]) -> None:
        key = keys.history(self.deployment)
        if rows:
            pipe.hset(key, items=[part for field in rows.items() for part in field])
        pipe.expire(key, keys.HISTORY_TTL_S)
        pipe.hgetall(key)
