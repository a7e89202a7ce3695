"""Checks that a checkpoint holds every tensor of its config, of the right shape, and nothing else.

Names and shapes are those of transformers' own model, built without memory; only files' headers are read.
"""

import re
from typing import Any, Protocol

import torch

from shard.models.checkpoint import CheckpointError

HEAD = "lm_head.weight"
# Unused tensors of older transformers versions, and companions of quantised matrices.
_HARMLESS = re.compile(r"(rotary_emb\.inv_freq|attn\.(masked_)?bias|embed_positions\.weights)$")
_SCALES = re.compile(r"_scale(_inv)?$|\.(input|output|k|v)_scale$|\.weight_shape$|\.activation_scale(_ub)?$")

_ABOUT_HEAD = {HEAD: "config.json says tie_word_embeddings false, so that the LM head is no other tensor"}

Shapes = dict[str, tuple[int, ...]]


class Headers(Protocol):
    """A checkpoint's names and shapes, without its numbers."""

    @property
    def shapes(self) -> Shapes: ...


def expected_shapes(config: Any, name: str = "config.json") -> Shapes:
    """Every tensor of a config's model by its full name, a tied LM head too. Raises `CheckpointError`."""
    from transformers import AutoModelForCausalLM  # takes seconds to import

    try:
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config)
    except Exception as error:  # invalid values raise errors of any class
        said = str(error).strip().splitlines() or [""]
        problem = f"{type(error).__name__}: {said[0]}"
        raise CheckpointError(f"{name} describes no model that can be built ({problem})") from None
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


def check(checkpoint: Headers, prefix: str, full_prefix: str, config: Any) -> None:
    """Raises `CheckpointError` for the first tensor that is missing, misshapen or not accounted for.

    `prefix` stands before the checkpoint's names where transformers has `full_prefix`.
    """
    found, expected = checkpoint.shapes, expected_shapes(config, f"{checkpoint}/config.json")
    here = {_renamed(name, full_prefix, prefix): shape for name, shape in expected.items()}
    for name, shape in here.items():
        if name not in found:
            if name == HEAD and config.tie_word_embeddings:
                continue
            advice = _ABOUT_HEAD.get(name, "fetch the model again")
            raise CheckpointError(f"tensor '{name}' is missing in {checkpoint}: {advice}")
        if found[name] != shape:
            raise CheckpointError(
                f"tensor '{name}' has shape {found[name]}, not {shape} as config.json asks, in {checkpoint}"
            )
    is_quantised = getattr(config, "quantization_config", None) is not None
    for name in sorted(found.keys() - here.keys()):
        if not is_quantised and _SCALES.search(name):
            raise CheckpointError(
                f"tensor '{name}' is in {checkpoint}, whose config.json has no quantization_config that says "
                "what it scales"
            )
        if not _HARMLESS.search(name) and not _SCALES.search(name):
            raise CheckpointError(
                f"tensor '{name}' is in {checkpoint}, and config.json does not account for it: "
                "it belongs to another model"
            )


def _renamed(name: str, full_prefix: str, prefix: str) -> str:
    return prefix + name.removeprefix(full_prefix) if name.startswith(full_prefix) else name
