"""Rotary tables, by `transformers`' formulas, for every scaling that does not depend on the sequence."""

from typing import Any

import torch

from shard.models.shape import UnsupportedModelError, refusals_of
from shard.ops.batch import Rope

SCALINGS = ("default", "linear", "llama3", "yarn")


def rope_of(config: Any, dim: int, max_positions: int, device: torch.device) -> Rope:
    """Tables for positions 0 .. max_positions - 1 of heads with `dim` dims."""
    with refusals_of(config):
        frequencies, factor = _checked_frequencies(config, dim)
    angles = torch.outer(torch.arange(max_positions, dtype=torch.float32), frequencies.float())
    return Rope(
        (angles.cos() * factor).to(device), (angles.sin() * factor).to(device), 2 * frequencies.shape[0]
    )


def _checked_frequencies(config: Any, dim: int) -> tuple[torch.Tensor, float]:
    parameters = dict(config.rope_parameters or {})
    kind = parameters.get("rope_type")
    if kind not in SCALINGS:
        raise UnsupportedModelError(
            f"rope_type {kind!r} is not supported; supported are {', '.join(SCALINGS)}"
        )
    try:
        frequencies, factor = _frequencies(config, kind, dim, parameters)
    except (KeyError, TypeError, ValueError, ZeroDivisionError) as error:
        raise UnsupportedModelError(f"rope_parameters of type '{kind}' lack or misstate {error}") from None
    if not torch.isfinite(frequencies).all():
        raise UnsupportedModelError(
            f"rope_theta is {parameters.get('rope_theta')!r}, by which nothing can be rotated"
        )
    return frequencies, factor


def no_rope(device: torch.device) -> Rope:
    """An empty table, for models with learned positions."""
    empty = torch.empty(0, dtype=torch.float32, device=device)
    return Rope(empty, empty, 0)


def _frequencies(config: Any, kind: str, dim: int, parameters: dict[str, Any]) -> tuple[torch.Tensor, float]:
    """Frequencies of each pair of dims, and the factor of both tables. The default kind rotates whole heads
    and ignores partial_rotary_factor, as in the families' own code."""
    if kind == "default":
        steps = torch.arange(0, dim, 2, dtype=torch.int64).float() / dim
        return 1.0 / (parameters["rope_theta"] ** steps), 1.0
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    frequencies, factor = ROPE_INIT_FUNCTIONS[kind](config, torch.device("cpu"))
    if 2 * len(frequencies) != dim:
        raise UnsupportedModelError(f"partial_rotary_factor with rope scaling '{kind}' is not supported")
    return frequencies, float(factor)
