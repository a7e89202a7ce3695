"""Llama and its kin (Mistral, Qwen2, Qwen3, SmolLM): one flat decoder.

Where they differ, a tensor is there or not: biases, norms of query and key heads, an own LM head.
"""

import copy
from typing import Self

import msgspec
import torch

from shard.models.shape import Shape
from shard.models.weights import Weights
from shard.ops.batch import KV, Batch, HeadNorms, Rope
from shard.ops.plain import Linear, PlainOps

PREFIXES = ("model.", "")
EMBEDDING = "embed_tokens.weight"


class Layer(msgspec.Struct, frozen=True):
    """One decoder layer's weights, projections that share an input fused."""

    attention_norm: torch.Tensor  # (H,)
    qkv: Linear  # H -> (Hq + 2 Hkv) D
    kv: Linear | None  # H -> 2 Hkv D: the same weights, where KV is written without running the layer
    head_norms: HeadNorms | None
    out: Linear  # Hq D -> H
    mlp_norm: torch.Tensor  # (H,)
    gate_up: Linear  # H -> 2 I
    down: Linear  # I -> H


class LlamaDecoder:
    """The first `depth` layers of a Llama-like model, and its head."""

    def __init__(self, shape: Shape, rope: Rope, ops: PlainOps, weights: Weights, depth: int, fills: bool):
        self.shape = shape
        self.depth = depth
        self.embedding = weights.read(EMBEDDING, (shape.vocab_size, shape.hidden_size))
        self.layers = [read_layer(weights, f"layers.{i}.", shape, fills) for i in range(depth)]
        self.head = weights.head(self.embedding, shape)
        self._norm = weights.read("norm.weight", (shape.hidden_size,))
        self.num_parameters = weights.num_parameters
        self._rope = rope
        self._ops = ops

    def first_layers(self, depth: int) -> Self:
        """The same weights, as a model of its first layers alone. What is added there is not added here."""
        shallow = copy.copy(self)
        shallow.depth, shallow.layers = depth, self.layers[:depth]
        return shallow

    @property
    def products(self) -> list[Linear]:
        """Every matrix product that one token goes through, the head's last."""
        return [
            product
            for layer in self.layers[: self.depth]
            for product in (layer.qkv, layer.out, layer.gate_up, layer.down)
        ] + [self.head]

    def embed(self, batch: Batch) -> torch.Tensor:
        """Token embeddings, (T, H)."""
        return torch.nn.functional.embedding(batch.token_ids, self.embedding)

    def run_layer(self, index: int, hidden: torch.Tensor, batch: Batch, kv: KV) -> torch.Tensor:
        """Hidden states (T, H) after one layer; writes the tokens' KV."""
        layer, ops, shape = self.layers[index], self._ops, self.shape
        qkv = layer.qkv(ops.rms_norm(hidden, layer.attention_norm, shape.norm_eps))
        q = ops.rope_write(qkv, shape.heads, self._rope, layer.head_norms, batch, kv)
        hidden = layer.out.add(ops.attend(q, shape.heads, batch, kv), hidden)
        gate_up = layer.gate_up(ops.rms_norm(hidden, layer.mlp_norm, shape.norm_eps))
        return layer.down.add(ops.silu_mul(gate_up), hidden)

    def write_kv(self, index: int, hidden: torch.Tensor, batch: Batch, kv: KV) -> None:
        """The layer's keys and values of hidden states (T, H), without running it; needs `fills`."""
        layer = self.layers[index]
        assert layer.kv is not None
        heads = self.shape.heads.without_queries
        projected = layer.kv(self._ops.rms_norm(hidden, layer.attention_norm, self.shape.norm_eps))
        self._ops.rope_write(projected, heads, self._rope, layer.head_norms, batch, kv)

    def add_layer(self, weights: Weights, at: str) -> int:
        """Another layer beyond the model's own, such as an exit's; its index."""
        self.layers.append(read_layer(weights, at, self.shape, fills=True))
        return len(self.layers) - 1

    def normed(self, hidden: torch.Tensor) -> torch.Tensor:
        """The final norm of hidden states (N, H)."""
        return self._ops.rms_norm(hidden, self._norm, self.shape.norm_eps)

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Final norm and LM head of hidden states (N, H); (N, V)."""
        return self.head(self.normed(hidden))


def read_layer(weights: Weights, at: str, shape: Shape, fills: bool) -> Layer:
    """One layer's tensors, whose names begin with `at`."""
    hidden = (shape.hidden_size,)
    attention, mlp = at + "self_attn.", at + "mlp."
    return Layer(
        attention_norm=weights.read(at + "input_layernorm.weight", hidden),
        qkv=weights.linear(attention + "q_proj", attention + "k_proj", attention + "v_proj"),
        kv=weights.linear(attention + "k_proj", attention + "v_proj") if fills else None,
        head_norms=_head_norms(weights, attention, shape),
        out=weights.linear(attention + "o_proj"),
        mlp_norm=weights.read(at + "post_attention_layernorm.weight", hidden),
        gate_up=weights.linear(mlp + "gate_proj", mlp + "up_proj"),
        down=weights.linear(mlp + "down_proj"),
    )


def _head_norms(weights: Weights, at: str, shape: Shape) -> HeadNorms | None:
    if at + "q_norm.weight" not in weights:
        return None
    dim = (shape.heads.dim,)
    return HeadNorms(
        weights.read(at + "q_norm.weight", dim), weights.read(at + "k_norm.weight", dim), shape.norm_eps
    )
