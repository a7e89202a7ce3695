"""A checkpoint's tensors as a decoder wants them: of one dtype, on the device, fused and packed.

A matrix NAME may be stored as int8, with a factor for each of its rows in NAME_scale, (rows, 1).
"""

import torch

from shard.models.checkpoint import Checkpoint, CheckpointError
from shard.models.random_weights import RandomCheckpoint
from shard.models.shape import Shape
from shard.ops.plain import Linear, PlainOps


class Weights:
    """Reads a family's tensors by the names that follow the checkpoint's own prefix."""

    def __init__(
        self, checkpoint: Checkpoint | RandomCheckpoint, prefix: str, ops: PlainOps, to: torch.Tensor
    ):
        self._checkpoint = checkpoint
        self._prefix = prefix
        self._ops = ops
        self._to = to  # an empty tensor of the device and dtype wanted
        self._sizes: dict[str, int] = {}  # of what was read so far

    def __contains__(self, name: str) -> bool:
        return self._prefix + name in self._checkpoint

    @property
    def num_parameters(self) -> int:
        """Read so far; what is read twice counts once."""
        return sum(self._sizes.values())

    def read(self, name: str, shape: tuple[int, ...] | None = None) -> torch.Tensor:
        """One tensor. Raises `CheckpointError` if it is missing or not of `shape`."""
        return self._take(self._prefix + name, shape)

    def linear(self, *names: str) -> Linear:
        """Projections of one input, each (out, in) with or without a bias, fused into one product."""
        weight = torch.cat([self.read(name + ".weight") for name in names])
        has_bias = names[0] + ".bias" in self
        return self._ops.linear(
            weight, torch.cat([self.read(name + ".bias") for name in names]) if has_bias else None
        )

    def transposed_linear(self, name: str, first: int = 0) -> Linear:
        """A projection stored as (in, out), as GPT-2's Conv1D does; its outputs from the `first` one on."""
        weight, bias = self.read(name + ".weight").t(), self.read(name + ".bias")
        return self._ops.linear(weight[first:].contiguous(), bias[first:].contiguous())

    def head(self, embedding: torch.Tensor, shape: Shape) -> Linear:
        """The LM head: the token embedding (V, H) where tied, or where the checkpoint has no other."""
        if shape.tied or "lm_head.weight" not in self._checkpoint:
            return self._ops.linear(embedding)
        return self._ops.linear(self._take("lm_head.weight", tuple(embedding.shape)))

    def _take(self, name: str, shape: tuple[int, ...] | None) -> torch.Tensor:
        tensor = self._checkpoint.read(name, shape)
        self._sizes[name] = tensor.numel()
        if tensor.dtype == torch.int8:
            tensor = self._dequantised(name, tensor)
        return tensor.to(self._to)

    def _dequantised(self, name: str, tensor: torch.Tensor) -> torch.Tensor:
        """A matrix in float32 of one in int8, symmetric by rows."""
        if tensor.ndim != 2:
            raise CheckpointError(f"tensor '{name}' is int8 and no matrix, which has no scale by rows")
        return tensor.float() * self._checkpoint.read(name + "_scale", (len(tensor), 1)).float()
