"""Scores answers at full depth on a shard with fewer layers loaded: the missing ones are streamed from the
checkpoint, one at a time.

A sequence first runs through the loaded layers as its tokens come. Then it waits, and runs through each
missing layer in pieces of some tokens, between steps and within a share of the time. At most one missing
layer is in memory. Its KV uses the sequence's own blocks of the first layer, which are no longer read.
"""

import logging
import time
from collections.abc import Iterator

import msgspec
import torch

from shard.engine.full_depth import SCORED_ROWS, FullDepth
from shard.engine.sequence import Sequence
from shard.engine.sequence_table import Chunk, SequenceTable
from shard.engine.step_inputs import BatchMaker
from shard.messages import Score
from shard.models.checkpoint import CheckpointError
from shard.models.load import MissingLayers
from shard.ops.batch import KV
from shard.stopwatch import synchronizer

log = logging.getLogger("helios.shard")


class ScoringJob:
    """One sequence being scored through the missing layers."""

    def __init__(self, sequence: Sequence):
        self.sequence = sequence
        self.hidden: list[torch.Tensor] = []  # (Q, H) behind the layers loaded, by chunk
        self.pieces: Iterator[list[Score]] | None = None  # set once all its tokens have come
        self.scores: list[Score] = []


class Finished(msgspec.Struct, frozen=True):
    """A sequence and its scores; no scores if the missing layers could not be read."""

    sequence: Sequence
    scores: list[Score]


class StreamedScoring:
    """Scores sequences in order of arrival, within a budget: a share of the steps' time."""

    def __init__(
        self,
        full_depth: FullDepth,
        missing: MissingLayers,
        pools: list[KV],
        make_batch: BatchMaker,
        budget: float,
    ):
        self._full_depth = full_depth
        self._missing = missing
        self._pools = pools
        self._make_batch = make_batch
        self._budget = budget
        self._synchronize = synchronizer(make_batch.device)
        self._jobs: dict[int, ScoringJob] = {}  # by sequence id
        self._credit_ms = 0.0

    def take(self, chunk: Chunk) -> None:
        """Run a chunk of a sequence through the loaded layers."""
        sequence = chunk.sequence
        if chunk.start == 0:
            self._jobs[sequence.id] = ScoringJob(sequence)
        job = self._jobs[sequence.id]
        job.hidden.append(self._full_depth.run_layers(chunk))
        if chunk.end == sequence.num_tokens:
            sequence.waits = True
            job.pieces = self._pieces(sequence, torch.cat(job.hidden))
            job.hidden = []

    def earn(self, ms: float) -> None:
        """Add a share of a step's time to the budget."""
        self._credit_ms += self._budget * ms

    def go_on(self, table: SequenceTable, is_idle: bool) -> list[Finished]:
        """Score within the budget, or one piece on an idle device; returns finished sequences.

        A piece may exceed the budget, since its time is not known before; later steps make up for it.
        """
        self._jobs = {id: job for id, job in self._jobs.items() if table.holds(job.sequence)}
        finished: list[Finished] = []
        while is_idle or self._credit_ms >= 0:
            job = next((job for job in self._jobs.values() if job.pieces is not None), None)
            if job is None:
                self._credit_ms = 0.0
                break
            ms = self.advance(job)
            if job.pieces is None:
                finished.append(Finished(job.sequence, job.scores))
            if is_idle:
                break
            self._credit_ms -= ms
        return finished

    def advance(self, job: ScoringJob) -> float:
        """Run one piece; returns milliseconds. After the last one the sequence no longer waits."""
        started = time.perf_counter()
        assert job.pieces is not None
        try:
            scores = next(job.pieces, None)
        except CheckpointError as error:
            log.warning("An answer is not scored: %s.", error)
            scores, job.scores = None, []
        if scores is not None:
            job.scores += scores
        else:
            job.pieces, job.sequence.waits = None, False
            del self._jobs[job.sequence.id]
        self._synchronize()
        return (time.perf_counter() - started) * 1000

    def _pieces(self, sequence: Sequence, hidden: torch.Tensor) -> Iterator[list[Score]]:
        """Run hidden states (T, H) through the missing layers and the head; yields scores as they come."""
        slices = [
            Chunk(sequence, at, min(SCORED_ROWS, len(hidden) - at))
            for at in range(0, len(hidden), SCORED_ROWS)
        ]
        for index in self._missing.indices:
            layer = self._missing.read(index)
            for chunk in slices:
                here, batch = slice(chunk.start, chunk.end), self._make_batch([chunk])
                hidden[here] = layer.run_layer(0, hidden[here], batch, self._pools[0])
                yield []
            del layer  # free it before the next one is read
        for chunk in slices:
            yield self._full_depth.score_answer(chunk, hidden[chunk.start : chunk.end])
