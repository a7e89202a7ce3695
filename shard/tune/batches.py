"""Batches of passages for training: a pure function of seed and step."""

import random
from collections.abc import Iterator, Sequence

import msgspec
import torch

from shard.tune.heads import Rows
from shard.tune.loss import Targets
from shard.tune.states import StateCache
from shard.tune.text import Passage

POOL = 256  # passages sorted by length at a time, so that a batch has little padding


class Source(msgspec.Struct, frozen=True):
    """One text: its cache, and its passages for training, for the probes, and held out."""

    name: str
    cache: StateCache
    training: list[int]
    probing: list[int]
    held_out: list[int]
    sampled: frozenset[int] = frozenset()  # passages drawn at a temperature, of all these
    passages: Sequence[Passage] = ()  # their tokens

    def kinds(self, passages: list[int]) -> dict[str, list[int]]:
        """The passages by the way their answers were drawn; empty groups are left out."""
        greedy = [passage for passage in passages if passage not in self.sampled]
        sampled = [passage for passage in passages if passage in self.sampled]
        return {kind: some for kind, some in (("greedy", greedy), ("sampled", sampled)) if some}


Place = tuple[int, int]  # (source, passage)


class Batch(msgspec.Struct, frozen=True):
    """Passages as padded tensors."""

    states: dict[int, torch.Tensor]  # by layer, (B, T, H), padded with zeros
    rows: Rows
    targets: Targets


def places_of(sources: Sequence[Source], which: str) -> list[Place]:
    """All passages of one kind: `training`, `probing` or `held_out`."""
    return [(s, passage) for s, source in enumerate(sources) for passage in getattr(source, which)]


def batches_of(sources: Sequence[Source], places: Sequence[Place], max_targets: int) -> Iterator[list[Place]]:
    """Places, in the order given, in batches of about `max_targets` positions to learn from."""
    batch: list[Place] = []
    size = 0
    for source, passage in places:
        count = sources[source].cache.num_targets(passage)
        if batch and size + count > max_targets:
            yield batch
            batch, size = [], 0
        batch.append((source, passage))
        size += count
    if batch:
        yield batch


def epoch(sources: Sequence[Source], max_targets: int, seed: int, number: int) -> list[list[Place]]:
    """The batches of one pass over all training passages, in its own order."""
    draw = random.Random(f"{seed} {number}")
    places = places_of(sources, "training")
    draw.shuffle(places)
    batches = []
    for first in range(0, len(places), POOL):
        pool = sorted(
            places[first : first + POOL], key=lambda place: sources[place[0]].cache.num_positions(place[1])
        )
        batches += list(batches_of(sources, pool, max_targets))
    draw.shuffle(batches)
    return batches


def load_batch(
    sources: Sequence[Source], places: Sequence[Place], layers: Sequence[int], to: torch.Tensor
) -> Batch:
    """The batch on the device and in the dtype of `to`."""
    caches = [(sources[source].cache, passage) for source, passage in places]
    lengths = [cache.num_positions(passage) for cache, passage in caches]
    counts = [cache.num_targets(passage) for cache, passage in caches]
    targets = [cache.targets(passage) for cache, passage in caches]
    states = {
        layer: torch.nn.utils.rnn.pad_sequence(
            [cache.states(layer, passage) for cache, passage in caches], batch_first=True
        ).to(to)
        for layer in layers
    }
    rows = Rows(
        torch.cat([torch.full((count,), i) for i, count in enumerate(counts)]).to(to.device),
        torch.cat(
            [torch.arange(length - count, length) for length, count in zip(lengths, counts, strict=True)]
        ).to(to.device),
    )
    ids, logprobs = (torch.cat(parts).to(to.device) for parts in zip(*targets, strict=True))
    return Batch(states, rows, Targets(ids, logprobs))
