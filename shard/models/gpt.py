"""OPT and GPT-2: learned positions, LayerNorm with bias, one hidden MLP layer. One flat decoder for both."""

from collections.abc import Callable
from functools import partial

import msgspec
import torch
from torch.nn import functional

from shard.models.decoder import FlatDecoder
from shard.models.shape import Shape, UnsupportedModelError
from shard.models.weights import Weights
from shard.ops.batch import KV, Batch, Rope
from shard.ops.plain import Linear, PlainOps


class Names(msgspec.Struct, frozen=True):
    """A family's names of tensors outside the layers, and the offset of its position table."""

    prefixes: tuple[str, ...]
    embedding: str
    positions: str
    layers: str
    norm: str
    position_offset: int = 0  # leading rows of the position table that no token uses


OPT = Names(
    ("model.decoder.", "decoder.", ""),
    "embed_tokens.weight",
    "embed_positions.weight",
    "layers.",
    "final_layer_norm",
    position_offset=2,
)
GPT2 = Names(("transformer.", ""), "wte.weight", "wpe.weight", "h.", "ln_f")


class Norm(msgspec.Struct, frozen=True):
    """LayerNorm weights, each (H,)."""

    weight: torch.Tensor
    bias: torch.Tensor
    eps: float

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return functional.layer_norm(x, self.weight.shape, self.weight, self.bias, self.eps)


class Layer(msgspec.Struct, frozen=True):
    """One decoder layer's weights."""

    attention_norm: Norm
    qkv: Linear  # H -> 3 H
    out: Linear  # H -> H
    mlp_norm: Norm
    up: Linear  # H -> I
    down: Linear  # I -> H


class GptDecoder(FlatDecoder[Layer]):
    """The first `depth` layers of an OPT or GPT-2 model, and its head."""

    def __init__(self, shape: Shape, rope: Rope, ops: PlainOps, weights: Weights, depth: int):
        names = OPT if shape.family == "opt" else GPT2
        read_layer = read_opt_layer if shape.family == "opt" else read_gpt2_layer
        super().__init__(shape, rope, ops, read_layer)
        self.depth = depth
        self.embedding = weights.read(names.embedding, (shape.vocab_size, shape.hidden_size))
        rows = shape.max_positions + names.position_offset
        self.positions = weights.read(names.positions, (rows, shape.hidden_size))
        self._first_position = names.position_offset
        self.layers = [read_layer(weights, f"{names.layers}{i}.", shape) for i in range(depth)]
        self.head = weights.head(names.embedding, self.embedding, shape)
        self.head_rows = partial(weights.head_rows, self.embedding, shape)
        self._norm = read_norm(weights, names.norm, shape)
        self._activate = activation_of(shape.activation)
        self.num_parameters = weights.num_parameters

    def embed(self, batch: Batch) -> torch.Tensor:
        tokens = functional.embedding(batch.token_ids, self.embedding)
        places = functional.embedding(batch.positions + self._first_position, self.positions)
        return self._ops.widened(tokens) + self._ops.widened(places)

    def normed(self, hidden: torch.Tensor) -> torch.Tensor:
        return self._norm(hidden)

    def _project(self, layer: Layer, hidden: torch.Tensor, batch: Batch, kv: KV) -> torch.Tensor:
        qkv = layer.qkv(layer.attention_norm(hidden))
        return self._ops.rope_write(qkv, self.shape.heads, self._rope, None, batch, kv)

    def _mix(self, layer: Layer, attended: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor:
        hidden = layer.out.add(attended, hidden)
        return layer.down.add(self._activate(layer.up(layer.mlp_norm(hidden))), hidden)

    def _linears_of(self, layer: Layer) -> tuple[Linear, ...]:
        return layer.qkv, layer.out, layer.up, layer.down


def activation_of(name: str) -> Callable[[torch.Tensor], torch.Tensor]:
    """An MLP's activation by its name in a config. Raises `UnsupportedModelError`."""
    if name == "relu":
        return functional.relu
    if name == "gelu":
        return functional.gelu
    if name in ("gelu_new", "gelu_pytorch_tanh"):
        return lambda x: functional.gelu(x, approximate="tanh")
    raise UnsupportedModelError(f"activation '{name}' is not supported")


def read_opt_layer(weights: Weights, at: str, shape: Shape) -> Layer:
    """One OPT layer's tensors, whose names begin with `at`."""
    attention = at + "self_attn."
    return Layer(
        attention_norm=read_norm(weights, at + "self_attn_layer_norm", shape),
        qkv=weights.linear(attention + "q_proj", attention + "k_proj", attention + "v_proj"),
        out=weights.linear(attention + "out_proj"),
        mlp_norm=read_norm(weights, at + "final_layer_norm", shape),
        up=weights.linear(at + "fc1"),
        down=weights.linear(at + "fc2"),
    )


def read_gpt2_layer(weights: Weights, at: str, shape: Shape) -> Layer:
    """One GPT-2 layer's tensors, whose names begin with `at`."""
    return Layer(
        attention_norm=read_norm(weights, at + "ln_1", shape),
        qkv=weights.transposed_linear(at + "attn.c_attn"),
        out=weights.transposed_linear(at + "attn.c_proj"),
        mlp_norm=read_norm(weights, at + "ln_2", shape),
        up=weights.transposed_linear(at + "mlp.c_fc"),
        down=weights.transposed_linear(at + "mlp.c_proj"),
    )


def read_norm(weights: Weights, at: str, shape: Shape) -> Norm:
    """A LayerNorm's weight and bias."""
    hidden = (shape.hidden_size,)
    return Norm(weights.read(at + ".weight", hidden), weights.read(at + ".bias", hidden), shape.norm_eps)
