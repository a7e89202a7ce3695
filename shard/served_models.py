"""Several models on one shard: new sequences begin on the newest, older models finish theirs.

A served model is a model at a depth, under the epoch of its `Prepare`. A step is split by model, and the
outputs are merged. Blocks that older models do not need go to the newest. A model without sequences is freed;
one that is requested again while loaded becomes the newest again. Knows no tensors: models are simulated or
real.
"""

import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Protocol, Self

import msgspec

from shard.clock import Clock
from shard.engine.sequence_table import SequenceTable
from shard.memory import Claim, Weights, share_out
from shard.messages import (
    CacheReport,
    Commit,
    Committed,
    NewSequence,
    OlderReport,
    Prepare,
    Prepared,
    Ready,
    ShardConfig,
    Step,
    StepOutput,
    SwapFailed,
)

MAX_REMEMBERED = 64  # epochs: a `Prepare` may be handled after its `Discard`, a step may name an older one


class Engine(Protocol):
    """One model at a depth, and the sequences on it."""

    table: SequenceTable

    @property
    def fingerprint(self) -> str:
        """Equal fingerprints mean equal engines, except their sequences and blocks."""
        ...

    @property
    def weights(self) -> Weights: ...

    @property
    def block_bytes(self) -> int: ...

    @property
    def max_blocks(self) -> int:
        """Largest useful number of blocks that fits if the model is alone."""
        ...

    @property
    def resizes_freely(self) -> bool:
        """True if `resize` copies nothing."""
        ...

    @property
    def phases_ms(self) -> dict[str, float]:
        """Milliseconds of the phases of loading."""
        ...

    def ready(self) -> Ready: ...
    def run(self, step: Step) -> StepOutput: ...

    def inherit(self, other: Self, max_blocks: int) -> int:
        """Take over what another one's prefix cache holds, as far as it is what this one computes.

        Returns the number of blocks, the latest of the other's. Only while this one has no sequences.
        """
        ...

    def resize(self, num_blocks: int) -> None:
        """Set the number of blocks, at least those in use. Raises `MemoryError`, with nothing changed."""
        ...


class Loader(Protocol):
    """Makes engines."""

    def first(self, config: ShardConfig) -> tuple[Engine, int]:
        """The model that a shard starts with, and its bytes of weights and KV cache."""
        ...

    def beside(self, config: ShardConfig, total_bytes: int, is_wanted: Callable[[], bool]) -> Engine:
        """Another model, within the same bytes once it is alone. Called on another thread while steps run.

        Raises `ValueError`, `OSError`, `MemoryError` or `ImportError` with one sentence; `Unwanted` when
        `is_wanted` turns false.
        """
        ...


class Unwanted(Exception):
    """The model being loaded is no longer wanted."""


class ServedModels:
    """The loaded engines of a shard, and the prepared one."""

    def __init__(self, config: ShardConfig, loader: Loader, clock: Clock | None = None):
        self.loader = loader
        self._clock = clock or Clock()
        engine, self._total_bytes = loader.first(config)
        self._reserve_bytes = config.swap_reserve_bytes or 0
        self.living: dict[int, Engine] = {0: engine}  # by epoch, oldest first
        self._renamed: dict[int, int] = {}  # old epoch -> the newer epoch of the same engine
        self._preparing = threading.Lock()
        self._wanted: int | None = None  # the epoch being prepared, or prepared
        self._discarded: set[int] = set()
        self.prepared: Engine | None = None
        self._last_end_ms: float | None = None  # of the last step, while sequences wait for the next

    @property
    def newest(self) -> int:
        return next(reversed(self.living))

    def ready(self) -> Ready:
        """`Ready` of the model that new sequences run on."""
        return self.living[self.newest].ready()

    def run(self, step: Step) -> StepOutput:
        """Run one step, model by model."""
        started_ms = self._clock.now_ms()
        idle_ms = 0.0 if self._last_end_ms is None else started_ms - self._last_end_ms
        parts, gone = self._split(step)
        outputs = {epoch: engine.run(parts[epoch]) for epoch, engine in self.living.items()}
        num_sequences = sum(output.num_sequences for output in outputs.values())
        self._last_end_ms = self._clock.now_ms() if num_sequences else None
        if len(self.living) > 1:
            self._tidy()
        return self._merge(outputs, idle_ms, gone)

    def prepare(self, prepare: Prepare) -> Prepared | SwapFailed:
        """Load a model beside the others. Runs on its own thread; touches nothing that steps use."""
        epoch = prepare.epoch
        with self._preparing:
            if epoch in self._discarded:
                raise Unwanted
            if self._wanted is not None:
                return SwapFailed(epoch, f"Epoch {self._wanted} is to be committed or discarded first.")
            self._wanted = epoch
        try:
            engine = self.loader.beside(prepare.config, self._total_bytes, lambda: self._wanted == epoch)
        except Exception:
            self._forget(epoch)
            raise
        with self._preparing:
            if self._wanted != epoch:
                raise Unwanted
            self.prepared = engine
        return Prepared(epoch, engine.ready(), engine.phases_ms)

    def discard(self, epoch: int) -> None:
        """Drop the model prepared, or being prepared, under an epoch. Any thread may call it."""
        with self._preparing:
            self._discarded = {old for old in self._discarded if old > epoch - MAX_REMEMBERED} | {epoch}
        self._forget(epoch)

    def commit(self, commit: Commit) -> Committed | SwapFailed:
        """Run new sequences on the prepared model. Call between two steps."""
        started_ms = self._clock.now_ms()
        epoch = commit.epoch
        with self._preparing:
            engine = self.prepared if self._wanted == epoch else None
        if engine is None:
            return SwapFailed(epoch, f"Nothing is prepared under epoch {epoch}.")
        before = self.living[self.newest]
        num_known = before.table.pool.num_known
        joined = self._find(engine.fingerprint)
        engine = engine if joined is None else self.living[joined]
        living = {t: old for t, old in self.living.items() if len(old.table) and t != joined}
        living[epoch] = engine
        shares = self._shares(living)
        if shares is None:
            return SwapFailed(epoch, _no_room(self.living))
        if joined is None and engine.table.caches_prefixes:
            engine.inherit(before, shares[epoch])  # before blocks that others need are taken from it
        try:
            self._resize(living, shares)
        except MemoryError as error:
            engine.table.clear_cache()
            self._resize(self.living, self._shares(self.living) or {})
            return SwapFailed(epoch, str(error) or "There is not enough memory for the model's blocks.")
        self.living = living
        self._rename(joined, epoch)
        self._forget(epoch)
        gap_ms = self._clock.now_ms() - started_ms
        num_kept = engine.table.pool.num_known
        num_dropped = max(0, num_known - num_kept) * before.table.block_size
        return Committed(epoch, engine.ready(), gap_ms, {"allocate": gap_ms}, joined, num_kept, num_dropped)

    def _find(self, fingerprint: str) -> int | None:
        """The epoch of a loaded engine with this fingerprint."""
        return next((t for t, engine in self.living.items() if engine.fingerprint == fingerprint), None)

    def _rename(self, old: int | None, new: int) -> None:
        """Move an engine to a new epoch. Steps in flight may still name the old one."""
        renamed = {t: new if to == old else to for t, to in self._renamed.items()}
        if old is not None:
            renamed[old] = new
        self._renamed = {
            epoch: to for epoch, to in renamed.items() if to in self.living and epoch > new - MAX_REMEMBERED
        }

    def _forget(self, epoch: int) -> None:
        with self._preparing:
            if self._wanted == epoch:
                self._wanted = self.prepared = None

    def _split(self, step: Step) -> tuple[dict[int, Step], list[tuple[int, int]]]:
        """Each model's part of a step, and the sequences whose model is gone."""
        parts = {epoch: Step(step.number, [], [], step.drop, step.clears_cache) for epoch in self.living}
        gone: list[tuple[int, int]] = []
        placed: dict[int, int] = {}
        for new in step.new:
            for engine in self.living.values():
                engine.table.forget(new.id)
            epoch = self._renamed.get(new.epoch, new.epoch)
            if self._can_hold(new, epoch):
                placed[new.id] = epoch
                parts[epoch].new.append(new)
            else:
                gone.append((new.id, new.attempt))
        for work in step.work:
            owners = (epoch for epoch, engine in self.living.items() if work.id in engine.table)
            owner = placed.get(work.id, next(owners, None))
            if owner is not None:
                parts[owner].work.append(work)
        return parts, gone

    def _can_hold(self, new: NewSequence, epoch: int) -> bool:
        if epoch == self.newest:
            return True
        engine = self.living.get(epoch)
        return engine is not None and engine.table.could_hold(new)

    def _tidy(self) -> None:
        """Free models without sequences, and give blocks that others no longer need to the newest."""
        before, newest = self.living, self.newest
        self.living = {t: engine for t, engine in before.items() if len(engine.table) or t == newest}
        freed = len(self.living) < len(before)
        del before
        shares = self._shares(self.living)
        if shares is not None and (freed or all(e.resizes_freely for e in self.living.values())):
            with suppress(MemoryError):  # tried again after the next change
                self._resize(self.living, shares)

    def _shares(self, living: dict[int, Engine]) -> dict[int, int] | None:
        """Blocks for each model, the last one being the newest; None if they do not fit together."""
        *older, newest = living.values()
        claims = [*map(_claim_of_older, older), _claim_of_newest(newest)]
        total_bytes = self._total_bytes + (self._reserve_bytes if older else 0)
        shares = share_out(claims, total_bytes)
        return None if shares is None else dict(zip(living, shares, strict=True))

    def _resize(self, living: dict[int, Engine], shares: dict[int, int]) -> None:
        """Resize all models: first those that shrink, a new one last."""
        known = list(self.living.values())

        def order(epoch: int) -> tuple[bool, bool]:
            has_less = living[epoch].table.pool.num_blocks < shares[epoch]
            return living[epoch] not in known, has_less

        for epoch in sorted(living, key=order):
            living[epoch].resize(shares[epoch])

    def _merge(
        self, outputs: dict[int, StepOutput], idle_ms: float, gone: list[tuple[int, int]]
    ) -> StepOutput:
        """The newest model's output, with all models' sequences and a report of each older model."""
        newest = next(reversed(outputs))
        pool = self.living[newest].table.pool
        return msgspec.structs.replace(
            outputs[newest],
            outputs=[output for part in outputs.values() for output in part.outputs],
            preempted=[preempted for part in outputs.values() for preempted in part.preempted],
            num_free_blocks=pool.num_free,
            idle_ms=idle_ms,
            epoch=newest,
            num_blocks=pool.num_blocks,
            older=[self._report(t, part) for t, part in outputs.items() if t != newest and t in self.living],
            gone=gone,
            cache=_together([part.cache for part in outputs.values() if part.cache is not None]),
        )

    def _report(self, epoch: int, part: StepOutput) -> OlderReport:
        num_free = self.living[epoch].table.pool.num_free
        return OlderReport(
            epoch, part.num_sequences, num_free, part.num_tokens, part.step_ms, part.exits, part.grammar
        )


def _together(reports: list[CacheReport]) -> CacheReport | None:
    """What the prefix caches of all models did; None without any."""
    if not reports:
        return None
    return CacheReport(*map(sum, zip(*map(msgspec.structs.astuple, reports), strict=True)))


def _claim_of_older(engine: Engine) -> Claim:
    """An older model's claim: what its sequences need to finish, at least the blocks in use."""
    ends, taken = engine.table.num_blocks_to_finish, engine.table.pool.num_taken
    return Claim(engine.weights, engine.block_bytes, max(taken, *ends, 0), max(taken, sum(ends)))


def _claim_of_newest(engine: Engine) -> Claim:
    """The newest model's claim: all there is, at least one sequence of the greatest length."""
    table = engine.table
    longest = -(-table.max_total_tokens // table.block_size)
    return Claim(engine.weights, engine.block_bytes, max(table.pool.num_taken, longest), engine.max_blocks)


def _no_room(living: dict[int, Engine]) -> str:
    num_sequences = sum(len(engine.table) for engine in living.values())
    return (
        f"There is no memory for one sequence of the greatest length beside the {num_sequences} that run: "
        "they must end or move first."
    )
