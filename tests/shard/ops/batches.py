"""Batches of sequences in shuffled blocks, and how far operations may be apart."""

import torch

from shard.ops.batch import Batch

TOLERANCE = {torch.float32: 2e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}


def make_batch(lengths: list[tuple[int, int]], block_size: int) -> Batch:
    """Sequences of (queries, keys) in shuffled blocks."""
    counts = [-(-keys // block_size) for _, keys in lengths]
    shuffled = torch.randperm(sum(counts)).split(counts)
    tables = torch.zeros(len(lengths), max(counts), dtype=torch.int32)
    positions, slots = [], []
    for row, (queries, keys) in enumerate(lengths):
        tables[row, : counts[row]] = shuffled[row]
        at = torch.arange(keys - queries, keys)
        positions.append(at)
        slots.append(shuffled[row][at // block_size] * block_size + at % block_size)
    starts = torch.tensor([0, *(queries for queries, _ in lengths)]).cumsum(0)
    contexts = torch.tensor([keys for _, keys in lengths])
    at, slot = torch.cat(positions), torch.cat(slots)
    return Batch(at, at, slot, starts, contexts, tables, max(q for q, _ in lengths), int(contexts.max()))
