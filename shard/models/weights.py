"""Prepares a checkpoint's tensors for a decoder: converted, on the device, fused and packed.

A matrix NAME may be stored as int8, with a factor for each of its rows in NAME_scale, (rows, 1).
"""

from collections.abc import Hashable, Sequence

import torch

from shard.models.checkpoint import Checkpoint, CheckpointError
from shard.models.gguf_blocks import GgufBlocks
from shard.models.manifest import HEAD
from shard.models.random_weights import RandomCheckpoint
from shard.models.shape import Shape
from shard.models.weight_cache import WeightReader
from shard.ops.blocks import Blocks, concatenated, from_rows, quantised
from shard.ops.plain import Linear
from shard.quality.weight_format import INT4, INT8, NONE

BITS = {INT8: 8, INT4: 4}  # of codes made at load
_FLOAT8 = (torch.float8_e4m3fn, torch.float8_e5m2)
_SCALE_TAILS = ("_scale_inv", "_scale")
_SAMPLED_ROWS = 64


class Weights:
    """Reads a family's tensors by the names that follow the checkpoint's own prefix.

    `source` is the checkpoint's key, by which models share its tensors. `scale_block` is the number of rows
    and columns that share one scale in a matrix of 8-bit floats. `blocks` holds matrices that are not to be
    read from the checkpoint.
    """

    def __init__(
        self,
        checkpoint: Checkpoint | RandomCheckpoint,
        prefix: str,
        source: Hashable,
        reader: WeightReader,
        scale_block: tuple[int, int] | None = None,
        blocks: GgufBlocks | None = None,
    ):
        self._checkpoint = checkpoint
        self._prefix = prefix
        self._source = source
        self._reader = reader
        self._scale_block = scale_block
        self._blocks = blocks
        self._sizes: dict[str, int] = {}  # elements of the tensors read so far, by name

    def __contains__(self, name: str) -> bool:
        return self._prefix + name in self._checkpoint

    @property
    def num_parameters(self) -> int:
        """Parameters read so far; each tensor counts once."""
        return sum(self._sizes.values())

    def read(self, name: str, shape: tuple[int, ...] | None = None) -> torch.Tensor:
        """One tensor. Raises `CheckpointError` if it is missing or not of `shape`."""
        key = self._key("read", name, shape)
        return self._reader.once(key, lambda: self._take(name, shape), self._sizes)

    def matrix(self, name: str, shape: tuple[int, ...]) -> Linear:
        """A product with one tensor. Raises `CheckpointError` if it is missing or not of `shape`."""
        key = self._key("matrix", name, shape)
        return self._reader.once(key, lambda: self._product([self._prefix + name], [], shape), self._sizes)

    def linear(self, *names: str) -> Linear:
        """Projections of one input, each (out, in) with or without a bias, fused into one product."""
        at = [self._prefix + name for name in names]
        weights, biases = [name + ".weight" for name in at], [name + ".bias" for name in at]
        biases = biases if biases[0] in self._checkpoint else []
        key = self._key("linear", *names)
        return self._reader.once(key, lambda: self._product(weights, biases), self._sizes)

    def transposed_linear(self, name: str) -> Linear:
        """A projection stored as (in, out), as GPT-2's Conv1D does."""
        return self._reader.once(self._key("transposed", name), lambda: self._transposed(name), self._sizes)

    def head(self, name: str, embedding: torch.Tensor, shape: Shape) -> Linear:
        """The LM head: the token embedding (V, H) of that name where tied, or where there is no other."""

        def make() -> Linear:
            is_tied = self._is_tied(embedding, shape)
            return self._product([self._prefix + name if is_tied else HEAD], [], tuple(embedding.shape))

        return self._reader.once(self._key("head"), make, self._sizes)

    def head_rows(self, embedding: torch.Tensor, shape: Shape) -> torch.Tensor:
        """The LM head's weights (V, H), for access to single rows."""
        if self._is_tied(embedding, shape):
            return embedding
        key = self._key("head rows")
        return self._reader.once(key, lambda: self._get(HEAD, tuple(embedding.shape)), self._sizes)

    def _key(self, *what: Hashable) -> tuple[Hashable, ...]:
        return (self._source, self._prefix, *what)

    def _product(
        self, names: Sequence[str], biases: Sequence[str], shape: tuple[int, ...] | None = None
    ) -> Linear:
        """A product with one matrix, or several that share their input."""
        bias = torch.cat([self._get(name) for name in biases]) if biases else None
        blocks = self._quantised(names, shape)
        if blocks is not None:
            return self._reader.quantised(blocks, bias)
        parts = [self._get(name, shape) for name in names]
        return self._reader.linear(parts[0] if len(parts) == 1 else torch.cat(parts), bias)

    def _transposed(self, name: str) -> Linear:
        weight, bias = self._float(self._prefix + name + ".weight").t(), self._take(name + ".bias")
        if self._reader.weights in BITS:
            return self._reader.quantised(quantised(weight, BITS[self._reader.weights]), bias)
        return self._reader.linear(self._reader.convert(weight.contiguous()), bias)

    def _quantised(self, names: Sequence[str], shape: tuple[int, ...] | None) -> Blocks | None:
        """Matrices to be kept in blocks, by the file's own if it has them; None: by the storage type."""
        kept = self._reader.weights
        if kept == NONE:
            return None
        if self._blocks is not None:
            if any(name not in self._blocks for name in names):
                return None
            parts = [self._blocks.read(name) for name in names]
            self._sizes |= {name: part.codes.numel() for name, part in zip(names, parts, strict=True)}
            return concatenated(parts) if all(part.is_like(parts[0]) for part in parts) else None
        raw = [self._checkpoint.read(name, shape) for name in names]
        if len(raw) == 1 and raw[0].dtype is torch.int8:  # its codes are kept as they are
            self._sizes[names[0]] = raw[0].numel()
            return from_rows(raw[0], self._scales_by_rows(names[0], raw[0]))
        if kept not in BITS:
            return None
        return concatenated([quantised(self._float(name, shape), BITS[kept]) for name in names])

    def _is_tied(self, embedding: torch.Tensor, shape: Shape) -> bool:
        """True without a head in the file, or if a tied one equals the embedding."""
        if HEAD not in self._checkpoint:
            return True
        if not shape.tied:
            return False
        head = self._reader.convert(self._checkpoint.read(HEAD))
        return torch.equal(head.cpu(), embedding.cpu())  # one of them may be staged on the host

    def _take(self, name: str, shape: tuple[int, ...] | None = None) -> torch.Tensor:
        return self._get(self._prefix + name, shape)

    def _get(self, name: str, shape: tuple[int, ...] | None = None) -> torch.Tensor:
        return self._reader.convert(self._float(name, shape))

    def _float(self, name: str, shape: tuple[int, ...] | None = None) -> torch.Tensor:
        """A tensor as the file has it, dequantised."""
        tensor = self._checkpoint.read(name, shape)
        self._sizes[name] = tensor.numel()
        scale = next((name + tail for tail in _SCALE_TAILS if name + tail in self._checkpoint), None)
        if tensor.dtype == torch.int8:
            tensor = self._dequantised(name, tensor)
        elif tensor.dtype in _FLOAT8:
            tensor = self._widened(name, tensor, scale)
        elif scale is not None:
            raise CheckpointError(f"tensor '{name}' is not of 8 bits, and has a scale beside it: '{scale}'")
        check_finite(name, tensor)
        return tensor

    def _widened(self, name: str, tensor: torch.Tensor, scale_name: str | None) -> torch.Tensor:
        """A float32 matrix from one in 8-bit floats with a scale for all, for rows, or for blocks."""
        if scale_name is None:
            raise CheckpointError(f"tensor '{name}' is of 8-bit floats and has no scale beside it")
        scale = self._checkpoint.read(scale_name).float()
        if scale.numel() == 1:
            return tensor.float() * scale.reshape(())
        rows, columns = tensor.shape
        if self._scale_block is None:
            if tuple(scale.shape) not in ((rows, 1), (rows,)):
                raise CheckpointError(
                    f"tensor '{scale_name}' has shape {tuple(scale.shape)}, not {(rows, 1)}: config.json "
                    "names no block size in its quantization_config"
                )
            return tensor.float() * scale.reshape(rows, 1)
        height, width = self._scale_block
        blocks = (-(-rows // height), -(-columns // width))
        if tuple(scale.shape) != blocks:
            raise CheckpointError(
                f"tensor '{scale_name}' has shape {tuple(scale.shape)}, not {blocks} as blocks of {height} x "
                f"{width} in config.json's quantization_config ask"
            )
        wide = scale.repeat_interleave(height, 0)[:rows].repeat_interleave(width, 1)[:, :columns]
        return tensor.float() * wide

    def _dequantised(self, name: str, tensor: torch.Tensor) -> torch.Tensor:
        """A float32 matrix from one in int8 with a scale by rows."""
        return tensor.float() * self._scales_by_rows(name, tensor)

    def _scales_by_rows(self, name: str, tensor: torch.Tensor) -> torch.Tensor:
        if tensor.ndim != 2:
            raise CheckpointError(f"tensor '{name}' is int8 and no matrix, which has no scale by rows")
        return self._checkpoint.read(name + "_scale", (len(tensor), 1)).float()


def check_finite(name: str, tensor: torch.Tensor) -> None:
    """Raises `CheckpointError` for NaN or infinity, in whole vectors and some rows of matrices."""
    step = max(1, len(tensor) // _SAMPLED_ROWS) if tensor.ndim > 1 else 1
    if not torch.isfinite(tensor[::step]).all():
        raise CheckpointError(f"tensor '{name}' holds NaN or infinite numbers: fetch the model again")
