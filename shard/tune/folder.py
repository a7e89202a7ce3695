"""Writes and reads exit folders of trained heads: int8 matrices with a scale by rows, the rest in float32."""

import os
from pathlib import Path

import msgspec
import torch
from safetensors.torch import load_file, save_file

from shard.exits.exit_heads import DESCRIPTION, ExitFile, ExitSpec, read_exits
from shard.tune.heads import Head
from shard.tune.layers import Tensors
from shard.tune.training import Student

HEADS = "exits.safetensors"
VOCABULARY = "vocabulary.weight"
SCALE = "_scale"


def quantised(name: str, weight: torch.Tensor) -> Tensors:
    """A matrix (rows, columns) as int8 and the scale (rows, 1) of each row, symmetric around zero."""
    scale = weight.abs().amax(1, keepdim=True).clamp_min(1e-12) / 127
    return {name: (weight / scale).round().to(torch.int8), name + SCALE: scale.float()}


def restored(tensors: Tensors) -> Tensors:
    """All tensors dequantised to float32."""
    return {
        name: tensor.float() * tensors[name + SCALE] if tensor.dtype == torch.int8 else tensor.float()
        for name, tensor in tensors.items()
        if not name.endswith(SCALE)
    }


def rounded(name: str, weight: torch.Tensor) -> torch.Tensor:
    """A tensor rounded as it will be read back."""
    return restored(stored(name, weight))[name].to(weight.device)


def save_exits(folder: Path, served: Student, probes: dict[int, Tensors], vocabulary: Path | None) -> None:
    """Write heads, probes and exits.json; `vocabulary` is the file that low-rank heads read."""
    tensors: Tensors = {}
    for head in served.heads:
        for name, weight in (head.weights | probes[head.layer]).items():
            tensors |= stored(f"exits.{head.layer}.{name}", weight)
    _save(folder / HEADS, tensors)
    shape = served.back.shape
    specs = [ExitSpec(head.layer, head.kind, head.rank, head.rerank) for head in served.heads]
    named = None if vocabulary is None else os.path.relpath(vocabulary, folder)
    file = ExitFile(specs, shape.num_layers, shape.hidden_size, named)
    (folder / DESCRIPTION).write_bytes(_readable(file))


def save_vocabulary(path: Path, vocabulary: torch.Tensor) -> None:
    """Write the vocabulary (V, R) that low-rank heads share to its own file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    _save(path, quantised(VOCABULARY, vocabulary))


def load_heads(folder: Path, device: torch.device) -> list[Head]:
    """Heads tuned before. Raises `ExitError` or `OSError`."""
    tensors = restored(load_file(folder / HEADS, device=str(device)))
    heads = []
    for spec in read_exits(folder).exits:
        at = f"exits.{spec.layer}."
        own = {name.removeprefix(at): tensor for name, tensor in tensors.items() if name.startswith(at)}
        weights = {name: tensor for name, tensor in own.items() if not name.startswith("probe.")}
        heads.append(Head(spec.layer, spec.head, weights, spec.rerank))
    return heads


def load_vocabulary(folder: Path, device: torch.device) -> torch.Tensor:
    """The vocabulary (V, R), float32, that a folder's low-rank heads read."""
    return read_vocabulary(folder / (read_exits(folder).vocabulary or HEADS), device)


def read_vocabulary(path: Path, device: torch.device) -> torch.Tensor:
    """The vocabulary (V, R), float32, in a file."""
    return restored(load_file(path, device=str(device)))[VOCABULARY]


def stored(name: str, weight: torch.Tensor) -> Tensors:
    """A tensor as it is written, by its names in the file."""
    weight = weight.detach().cpu().float().contiguous()
    is_matrix = weight.ndim == 2 and weight.shape[0] > 1
    return quantised(name, weight) if is_matrix else {name: weight}


def _save(path: Path, tensors: Tensors) -> None:
    temporary = path.with_suffix(".partial")
    save_file(tensors, temporary)
    os.replace(temporary, path)


def _readable(file: ExitFile) -> bytes:
    """Indented JSON without default values."""
    plain = msgspec.to_builtins(file)
    plain["exits"] = [
        {key: value for key, value in spec.items() if value not in (None, {})} for spec in plain["exits"]
    ]
    kept = {key: value for key, value in plain.items() if value is not None}
    return msgspec.json.format(msgspec.json.encode(kept), indent=2) + b"\n"
