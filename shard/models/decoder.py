"""The base of all families' flat decoders: runs layers whole or in halves, shares and adds layers."""

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Generic, Self, TypeVar

import torch

from shard.models.checkpoint import CheckpointError
from shard.models.shape import Shape
from shard.models.weights import Weights
from shard.ops.batch import KV, Batch, Rope
from shard.ops.plain import Linear, PlainOps

Layer = TypeVar("Layer")
ReadLayer = Callable[[Weights, str, Shape], Layer]  # arguments: weights, prefix of the layer's names, shape


class FlatDecoder(ABC, Generic[Layer]):
    """The first `depth` layers of a model, and its head. Subclasses implement a family's layer."""

    def __init__(self, shape: Shape, rope: Rope, ops: PlainOps, read_layer: ReadLayer[Layer]):
        self.shape = shape
        self.layers: list[Layer] = []
        self.depth = 0
        self._rope = rope
        self._ops = ops
        self._read_layer = read_layer

    head: Linear  # H -> V
    head_rows: Callable[[], torch.Tensor]  # the head's unpacked weights, (V, H)
    embedding: torch.Tensor  # (V, H)
    num_parameters: int

    def first_layers(self, depth: int) -> Self:
        """A model of the first layers alone, with the same weights. Layers added there are not added here."""
        shallow = copy.copy(self)
        shallow.depth, shallow.layers = depth, self.layers[:depth]
        return shallow

    def only_layer(self, weights: Weights, at: str) -> Self:
        """A model of a single newly read layer; all else is shared."""
        alone = copy.copy(self)
        alone.depth, alone.layers = 1, [self._read_layer(weights, at, self.shape)]
        return alone

    def add_layer(self, weights: Weights, at: str) -> int:
        """Another layer beyond the model's own, such as an exit's; its index.

        Raises `CheckpointError` unless it is of the same shape.
        """
        layer = self._read_layer(weights, at, self.shape)
        own, its = ([part.shape for part in self._linears_of(one)] for one in (self.layers[0], layer))
        if own != its:
            raise CheckpointError(f"the layer '{at}' has matrices of shapes {its}, not {own} as the model's")
        self.layers = [*self.layers, layer]
        return len(self.layers) - 1

    @property
    def linears(self) -> list[Linear]:
        """Every matrix product that one token goes through, the head's last."""
        own = self.layers[: self.depth]
        return [linear for layer in own for linear in self._linears_of(layer)] + [self.head]

    def run_layer(self, index: int, hidden: torch.Tensor, batch: Batch, kv: KV) -> torch.Tensor:
        """Hidden states (T, H) after one layer; writes the tokens' KV."""
        return self.mix(index, self.project(index, hidden, batch, kv), hidden, batch, kv)

    def project(self, index: int, hidden: torch.Tensor, batch: Batch, kv: KV) -> torch.Tensor:
        """The first half of a layer: writes the KV of hidden states (T, H); their queries (T, Hq, D)."""
        return self._project(self.layers[index], hidden, batch, kv)

    def mix(
        self, index: int, queries: torch.Tensor, hidden: torch.Tensor, batch: Batch, kv: KV
    ) -> torch.Tensor:
        """The second half: hidden states (T, H) after attention by their queries, and after the MLP."""
        layer = self.layers[index]
        attended = self._ops.attend(queries, self.shape.heads, batch, kv)
        return self._mix(layer, attended, hidden)

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Final norm and LM head of hidden states (N, H); (N, V)."""
        return self.head(self.normed(hidden))

    @abstractmethod
    def embed(self, batch: Batch) -> torch.Tensor:
        """Input of the first layer, (T, H)."""

    @abstractmethod
    def normed(self, hidden: torch.Tensor) -> torch.Tensor:
        """The final norm of hidden states (N, H)."""

    @abstractmethod
    def _project(self, layer: Layer, hidden: torch.Tensor, batch: Batch, kv: KV) -> torch.Tensor: ...

    @abstractmethod
    def _mix(self, layer: Layer, attended: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor: ...

    @abstractmethod
    def _linears_of(self, layer: Layer) -> tuple[Linear, ...]: ...
