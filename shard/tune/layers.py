"""A decoder layer of every supported family in differentiable plain torch.

The engine's layers write paged caches in place; these take whole passages (B, T), padded at their ends.
Weights are a dictionary of one layer's tensors by the checkpoint's names.
"""

from pathlib import Path

import msgspec
import torch
from torch.nn import functional

from shard.models.checkpoint import Checkpoint
from shard.models.gpt import GPT2, OPT, activation_of
from shard.models.llama import EMBEDDING
from shard.models.load import open_checkpoint
from shard.models.manifest import HEAD
from shard.models.random_weights import RandomCheckpoint
from shard.models.rope import no_rope, rope_of
from shard.models.shape import GPT_LIKE, Shape, UnsupportedModelError, read_config, shape_of
from shard.ops.batch import Rope

Tensors = dict[str, torch.Tensor]

_LLAMA = ("q_proj", "k_proj", "v_proj", "o_proj")
LAYER_MATRICES = {
    "llama": (*(f"self_attn.{name}" for name in _LLAMA), "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"),
    "opt": (*(f"self_attn.{name}_proj" for name in ("q", "k", "v", "out")), "fc1", "fc2"),
    "gpt2": ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj"),
}
LAYER_NORMS = {
    "llama": (
        "input_layernorm",
        "post_attention_layernorm",
        "self_attn.q_norm",
        "self_attn.k_norm",
    ),
    "opt": ("self_attn_layer_norm", "final_layer_norm"),
    "gpt2": ("ln_1", "ln_2"),
}


class Backbone(msgspec.Struct, frozen=True):
    """The parts of a model used in tuning: shape, rope tables, final norm, LM head, layers."""

    shape: Shape
    rope: Rope
    checkpoint: Checkpoint | RandomCheckpoint
    prefix: str
    head: torch.Tensor  # (V, H) float32
    norm: Tensors  # weight (H,), and bias for the GPT-like, float32

    @property
    def kind(self) -> str:
        """The kind of layer: llama, opt or gpt2."""
        return self.shape.family if self.shape.family in GPT_LIKE else "llama"

    def layer(self, index: int) -> Tensors:
        """One layer's tensors, float32, by the names that follow the layer's own."""
        at = {"llama": "layers.", "opt": OPT.layers, "gpt2": GPT2.layers}[self.kind]
        names = [
            f"{name}.{part}"
            for name in LAYER_MATRICES[self.kind] + LAYER_NORMS[self.kind]
            for part in ("weight", "bias")
        ]
        whole = f"{self.prefix}{at}{index}."
        return {
            name: self.checkpoint.read(whole + name).float().to(self.head.device)
            for name in names
            if whole + name in self.checkpoint
        }

    def embedding(self) -> torch.Tensor:
        """The token embedding (V, H), float32."""
        if HEAD not in self.checkpoint:
            return self.head
        return self.checkpoint.read(self.prefix + _names(self.shape)[0]).float().to(self.head.device)

    def normed(self, hidden: torch.Tensor) -> torch.Tensor:
        """The model's final norm of (N, H), in the dtype given."""
        return _norm(self.shape, self.norm, "", hidden)


def read_backbone(folder: Path, max_tokens: int, device: torch.device) -> Backbone:
    """Read a model's backbone. Raises `UnsupportedModelError` and `CheckpointError`."""
    config = read_config(folder)
    shape = shape_of(config)
    if getattr(config, "quantization_config", None) is not None:
        raise UnsupportedModelError(f"{folder} is quantised: tune the model that it was made of")
    checkpoint, prefix = open_checkpoint(folder, config)
    embedding, norm = _names(shape)
    if shape.family in GPT_LIKE:
        rope = no_rope(device)
    else:
        rope = rope_of(config, shape.heads.dim, min(max_tokens, shape.max_positions), device)
    head = checkpoint.read(HEAD if HEAD in checkpoint else prefix + embedding).float().to(device)
    norms = {
        part: checkpoint.read(f"{prefix}{norm}.{part}").float().to(device)
        for part in ("weight", "bias")
        if f"{prefix}{norm}.{part}" in checkpoint
    }
    return Backbone(shape, rope, checkpoint, prefix, head, norms)


def _names(shape: Shape) -> tuple[str, str]:
    """Names of embedding and final norm."""
    names = {"opt": OPT, "gpt2": GPT2}.get(shape.family)
    return (EMBEDDING, "norm") if names is None else (names.embedding, names.norm)


def attend(back: Backbone, weights: Tensors, hidden: torch.Tensor) -> torch.Tensor:
    """A layer's attention, before its output projection: (B, T, H) -> (B, T, Hq D).

    Padding follows a passage's end, where causal attention does not look.
    """
    q, k, v = projected(back, weights, hidden)
    window = back.shape.heads.window
    return weigh(back, q, k, v, _window_mask(hidden.shape[1], window, hidden.device) if window else None)


def weigh(
    back: Backbone, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor | None
) -> torch.Tensor:
    """Attention (B, T, Hq D) of projected heads where `mask` (T, keys) allows; None: causal."""
    heads = back.shape.heads
    ratio = heads.query // heads.kv
    q, k, v = (part.transpose(1, 2) for part in (q, k, v))  # (B, heads, T, D)
    if ratio > 1:
        k, v = k.repeat_interleave(ratio, dim=1), v.repeat_interleave(ratio, dim=1)
    out = functional.scaled_dot_product_attention(
        q, k, v, attn_mask=mask, is_causal=mask is None, scale=heads.scale
    )
    return out.transpose(1, 2).flatten(2)


def finish(back: Backbone, weights: Tensors, hidden: torch.Tensor, attended: torch.Tensor) -> torch.Tensor:
    """The rest of a layer for some rows: hidden states (N, H) and attention's results (N, Hq D)."""
    shape = back.shape
    if back.kind == "llama":
        hidden = hidden + _linear(weights, "self_attn.o_proj", attended)
        inner = _norm(shape, weights, "post_attention_layernorm.", hidden)
        gate = functional.silu(_linear(weights, "mlp.gate_proj", inner))
        return hidden + _linear(weights, "mlp.down_proj", gate * _linear(weights, "mlp.up_proj", inner))
    activate = activation_of(shape.activation)
    if back.kind == "opt":
        hidden = hidden + _linear(weights, "self_attn.out_proj", attended)
        inner = activate(_linear(weights, "fc1", _norm(shape, weights, "final_layer_norm.", hidden)))
        return hidden + _linear(weights, "fc2", inner)
    hidden = hidden + _conv(weights, "attn.c_proj", attended)
    inner = activate(_conv(weights, "mlp.c_fc", _norm(shape, weights, "ln_2.", hidden)))
    return hidden + _conv(weights, "mlp.c_proj", inner)


def projected(back: Backbone, weights: Tensors, hidden: torch.Tensor) -> list[torch.Tensor]:
    """Queries, keys and values, each (B, T, heads, D), rotated."""
    shape, heads = back.shape, back.shape.heads
    if back.kind == "gpt2":
        inner = _norm(shape, weights, "ln_1.", hidden)
        return [
            part.unflatten(-1, (heads.query, heads.dim))
            for part in _conv(weights, "attn.c_attn", inner).chunk(3, -1)
        ]
    norm = "input_layernorm." if back.kind == "llama" else "self_attn_layer_norm."
    inner = _norm(shape, weights, norm, hidden)
    q, k, v = (
        _linear(weights, f"self_attn.{name}_proj", inner).unflatten(-1, (-1, heads.dim)) for name in "qkv"
    )
    if "self_attn.q_norm.weight" in weights:
        q = _norm(shape, weights, "self_attn.q_norm.", q)
        k = _norm(shape, weights, "self_attn.k_norm.", k)
    if back.rope.rotary_dim:
        q, k = _rotated(q, back.rope), _rotated(k, back.rope)
    return [q, k, v]


def _rotated(x: torch.Tensor, rope: Rope) -> torch.Tensor:
    """Half-split rotary embedding of (B, T, heads, D) at positions 0 .. T - 1."""
    cos, sin = rope.cos[: x.shape[1], None], rope.sin[: x.shape[1], None]
    turned, rest = x.float().split([rope.rotary_dim, x.shape[-1] - rope.rotary_dim], dim=-1)
    a, b = turned.chunk(2, dim=-1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin, rest), dim=-1).to(x.dtype)


def _window_mask(num_tokens: int, window: int, device: torch.device) -> torch.Tensor:
    at = torch.arange(num_tokens, device=device)
    back = at[:, None] - at[None, :]
    return (back >= 0) & (back < window)


def _norm(shape: Shape, weights: Tensors, at: str, x: torch.Tensor) -> torch.Tensor:
    """RMSNorm, or LayerNorm if there is a bias, computed in float32, returned in the dtype of `x`."""
    weight, bias = weights[at + "weight"], weights.get(at + "bias")
    if bias is None:
        return functional.rms_norm(x.float(), weight.shape, weight, shape.norm_eps).to(x.dtype)
    return functional.layer_norm(x.float(), weight.shape, weight, bias, shape.norm_eps).to(x.dtype)


def _linear(weights: Tensors, name: str, x: torch.Tensor) -> torch.Tensor:
    bias = weights.get(name + ".bias")
    return functional.linear(
        x, weights[name + ".weight"].to(x.dtype), None if bias is None else bias.to(x.dtype)
    )


def _conv(weights: Tensors, name: str, x: torch.Tensor) -> torch.Tensor:
    """GPT-2's Conv1D: its weight is (in, out)."""
    return functional.linear(
        x, weights[name + ".weight"].t().to(x.dtype), weights[name + ".bias"].to(x.dtype)
    )
