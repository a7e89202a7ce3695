"""Turns chunks into tensors: token ids, positions, KV slots."""

import numpy as np
import torch

from shard.engine.sequence_table import Chunk
from shard.ops.batch import Batch


class BatchMaker:
    """Makes batches for one device and block size."""

    def __init__(self, block_size: int, device: torch.device):
        self.block_size = block_size
        self.device = device

    def __call__(self, chunks: list[Chunk]) -> Batch:
        """The batch of the chunks' tokens. Each chunk needs at least one token, and its blocks."""
        size = self.block_size
        token_ids: list[int] = []
        positions: list[int] = []
        slots: list[int] = []
        starts = [0]
        tables = np.zeros((len(chunks), max(len(chunk.sequence.blocks) for chunk in chunks)), dtype=np.int32)
        for row, chunk in enumerate(chunks):
            blocks, at = chunk.sequence.blocks, range(chunk.start, chunk.end)
            tables[row, : len(blocks)] = blocks
            token_ids += chunk.sequence.token_ids[chunk.start : chunk.end]
            positions += at
            slots += [blocks[p // size] * size + p % size for p in at]
            starts.append(len(token_ids))
        return Batch(
            self._tensor(token_ids),
            self._tensor(positions),
            self._tensor(slots),
            self._tensor(starts),
            self._tensor([chunk.end for chunk in chunks]),
            torch.from_numpy(tables).to(self.device),
            max(chunk.num_tokens for chunk in chunks),
            max(chunk.end for chunk in chunks),
        )

    def _tensor(self, values: list[int]) -> torch.Tensor:
        return torch.tensor(values, dtype=torch.int64, device=self.device)
