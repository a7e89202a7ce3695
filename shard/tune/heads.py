"""Exit heads in training: parameters by their names in exits.safetensors.

Weights are kept in float32; products run in the dtype of the hidden states. The backbone's own norm and LM
head are never among the parameters.
"""

import msgspec
import torch
from torch.nn import functional

from shard.exits.exit_heads import HeadKind
from shard.tune.layers import Backbone, Tensors, attend, finish

MLP_RATIO = 4  # width of an MLP head over the hidden size


class Rows(msgspec.Struct, frozen=True):
    """Positions of a padded batch (B, T) that predict answer tokens, ordered by passage."""

    batch: torch.Tensor  # (N,)
    position: torch.Tensor  # (N,)

    def select(self, hidden: torch.Tensor) -> torch.Tensor:
        """(B, T, H) -> (N, H)"""
        return hidden[self.batch, self.position]


class Head:
    """The head behind one layer; `weights` are its tensors by name, without the prefix `exits.LAYER.`.

    `rerank`: number of the low-rank product's likeliest tokens that the model's LM head reranks.
    """

    def __init__(self, layer: int, kind: HeadKind, weights: Tensors, rerank: int | None = None):
        self.layer = layer
        self.kind = kind
        self.weights = weights
        self.rerank = rerank
        self._block = {
            name.removeprefix("block."): value for name, value in weights.items() if name.startswith("block.")
        }

    @property
    def rank(self) -> int | None:
        """Rank of its vocabulary; None: it uses the model's LM head."""
        return len(self.weights["low_rank.weight"]) if "low_rank.weight" in self.weights else None

    def features(self, back: Backbone, hidden: torch.Tensor, rows: Rows) -> torch.Tensor:
        """Features (N, H) from hidden states (B, T, H) at the exit."""
        return back.normed(self._hidden(back, hidden, rows))

    def reduced(self, features: torch.Tensor) -> torch.Tensor:
        """Input of the vocabulary, (N, R)."""
        return self._linear("low_rank.weight", features)

    def adapted(self, features: torch.Tensor) -> torch.Tensor:
        """Input of the LM head when reranking, (N, H)."""
        return self._linear("rerank.weight", features)

    def _linear(self, name: str, features: torch.Tensor) -> torch.Tensor:
        weight = self.weights.get(name)
        return features if weight is None else functional.linear(features, weight.to(features.dtype))

    def _hidden(self, back: Backbone, hidden: torch.Tensor, rows: Rows) -> torch.Tensor:
        if self.kind is HeadKind.BLOCK:
            attended = attend(back, self._block, hidden)
            return finish(back, self._block, rows.select(hidden), rows.select(attended))
        chosen = rows.select(hidden)
        if self.kind is HeadKind.MLP:
            norm = self.weights["mlp.norm.weight"]
            inner = functional.rms_norm(chosen.float(), norm.shape, norm, back.shape.norm_eps).to(
                chosen.dtype
            )
            inner = functional.silu(functional.linear(inner, self.weights["mlp.up.weight"].to(inner.dtype)))
            return chosen + functional.linear(inner, self.weights["mlp.down.weight"].to(inner.dtype))
        return chosen


class HeadSpec(msgspec.Struct, frozen=True):
    """Specification of the heads to train."""

    layers: list[int]
    kind: HeadKind
    rank: int | None  # None: the model's own LM head
    rerank: int | None = None  # number of proposed tokens that get the LM head's exact logits


def first_weights(
    spec: HeadSpec, back: Backbone, reducer: torch.Tensor | None, seed: int
) -> dict[int, Tensors]:
    """Initial weights by exit layer: a block copies the first skipped layer, an MLP adds nothing yet.

    `reducer` (R, H) initialises every exit's low-rank product.
    """
    generator = torch.Generator().manual_seed(seed)
    width, made = back.shape.hidden_size, {}
    for layer in spec.layers:
        weights: Tensors = {}
        if spec.kind is HeadKind.BLOCK:
            # copying the model's last layer, which feeds the LM head, would learn more slowly
            weights |= {f"block.{name}": value.clone() for name, value in back.layer(layer).items()}
        if spec.kind is HeadKind.MLP:
            inner = MLP_RATIO * width
            weights["mlp.norm.weight"] = torch.ones(width)
            weights["mlp.up.weight"] = torch.randn(inner, width, generator=generator) * width**-0.5
            weights["mlp.down.weight"] = torch.zeros(width, inner)
        if reducer is not None:
            weights["low_rank.weight"] = reducer.clone()
        made[layer] = {name: weight.to(back.head.device) for name, weight in weights.items()}
    return made
