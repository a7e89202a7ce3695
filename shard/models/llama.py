"""One flat decoder for Llama, Mistral, Qwen2, Qwen3 and SmolLM.

They differ only in optional tensors: biases, norms of query and key heads, an LM head.
"""

from functools import partial

import msgspec
import torch

from shard.models.decoder import FlatDecoder
from shard.models.shape import Shape
from shard.models.weights import Weights
from shard.ops.batch import KV, Batch, HeadNorms, Rope
from shard.ops.plain import Linear, PlainOps

PREFIXES = ("model.", "")
EMBEDDING = "embed_tokens.weight"
LAYERS = "layers."


class Layer(msgspec.Struct, frozen=True):
    """One decoder layer's weights, projections that share an input fused."""

    attention_norm: torch.Tensor  # (H,)
    qkv: Linear  # H -> (Hq + 2 Hkv) D
    head_norms: HeadNorms | None
    out: Linear  # Hq D -> H
    mlp_norm: torch.Tensor  # (H,)
    gate_up: Linear  # H -> 2 I
    down: Linear  # I -> H


class LlamaDecoder(FlatDecoder[Layer]):
    """The first `depth` layers of a Llama-like model, and its head."""

    def __init__(self, shape: Shape, rope: Rope, ops: PlainOps, weights: Weights, depth: int):
        super().__init__(shape, rope, ops, read_layer)
        self.depth = depth
        self.embedding = weights.read(EMBEDDING, (shape.vocab_size, shape.hidden_size))
        self.layers = [read_layer(weights, f"{LAYERS}{i}.", shape) for i in range(depth)]
        self.head = weights.head(EMBEDDING, self.embedding, shape)
        self.head_rows = partial(weights.head_rows, self.embedding, shape)
        self._norm = weights.read("norm.weight", (shape.hidden_size,))
        self.num_parameters = weights.num_parameters

    def embed(self, batch: Batch) -> torch.Tensor:
        return self._ops.widened(torch.nn.functional.embedding(batch.token_ids, self.embedding))

    def normed(self, hidden: torch.Tensor) -> torch.Tensor:
        return self._ops.rms_norm(hidden, self._norm, self.shape.norm_eps)

    def _project(self, layer: Layer, hidden: torch.Tensor, batch: Batch, kv: KV) -> torch.Tensor:
        qkv = layer.qkv(self._ops.rms_norm(hidden, layer.attention_norm, self.shape.norm_eps))
        return self._ops.rope_write(qkv, self.shape.heads, self._rope, layer.head_norms, batch, kv)

    def _mix(self, layer: Layer, attended: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor:
        hidden = layer.out.add(attended, hidden)
        gate_up = layer.gate_up(self._ops.rms_norm(hidden, layer.mlp_norm, self.shape.norm_eps))
        return layer.down.add(self._ops.silu_mul(gate_up), hidden)

    def _linears_of(self, layer: Layer) -> tuple[Linear, ...]:
        return layer.qkv, layer.out, layer.gate_up, layer.down


def read_layer(weights: Weights, at: str, shape: Shape) -> Layer:
    """One layer's tensors, whose names begin with `at`."""
    hidden = (shape.hidden_size,)
    attention, mlp = at + "self_attn.", at + "mlp."
    return Layer(
        attention_norm=weights.read(at + "input_layernorm.weight", hidden),
        qkv=weights.linear(attention + "q_proj", attention + "k_proj", attention + "v_proj"),
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
