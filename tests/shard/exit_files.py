"""Exit folders with random heads, for any tiny model; tests set thresholds to where the heads split."""

import json
from collections.abc import Callable
from pathlib import Path

import torch

from shard.models.shape import read_config, shape_of


def write_exits(folder: Path, model: Path, layers: list[int], head: str, **fields) -> Path:
    """exits.json and exits.safetensors with random heads and probes at these layers.

    With a `rank` among the fields, their vocabulary is there too.
    """
    from safetensors.torch import save_file

    folder.mkdir(parents=True)
    shape = shape_of(read_config(model))
    generator = torch.Generator().manual_seed(7)
    tensors: dict[str, torch.Tensor] = {}

    def add(name: str, *size: int) -> None:
        tensors[name] = torch.randn(*size, generator=generator) * size[-1] ** -0.5

    for layer in layers:
        at = f"exits.{layer}."
        add(at + "probe.weight", 1, shape.hidden_size)
        if head == "mlp":
            tensors[at + "mlp.norm.weight"] = torch.rand(shape.hidden_size, generator=generator) + 0.5
            add(at + "mlp.up.weight", 48, shape.hidden_size)
            add(at + "mlp.down.weight", shape.hidden_size, 48)
        if head == "block":
            tensors |= {at + "block." + name: value for name, value in _a_layer(model).items()}
        if "rank" in fields:
            add(at + "low_rank.weight", fields["rank"], shape.hidden_size)
    if "rank" in fields:
        add("vocabulary.weight", shape.vocab_size, fields["rank"])
    save_file(tensors, folder / "exits.safetensors")
    exits = [{"layer": layer, "head": head} | fields for layer in layers]
    (folder / "exits.json").write_text(json.dumps({"exits": exits, "num_layers": shape.num_layers}))
    return folder


def change_tensors(file: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    """Rewrite a safetensors file after `change` has had its way with the tensors."""
    from safetensors.torch import load_file, save_file

    tensors = load_file(file)
    change(tensors)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, file)


def quantise(tensors: dict[str, torch.Tensor]) -> None:
    """Every matrix in int8, symmetric by rows, in place."""
    for name, tensor in list(tensors.items()):
        if tensor.ndim == 2:
            scale = tensor.abs().amax(1, keepdim=True) / 127
            tensors[name] = (tensor / scale).round().to(torch.int8)
            tensors[name + "_scale"] = scale


def _a_layer(model: Path) -> dict[str, torch.Tensor]:
    """The tensors of a model's last layer, by the names that follow the layer's own."""
    from safetensors.torch import load_file

    tensors = load_file(model / "model.safetensors")
    marks = [f"{kind}.3." for kind in ("layers", "h")]
    return {
        name.split(mark)[1]: value.clone()
        for name, value in tensors.items()
        for mark in marks
        if mark in name
    }
