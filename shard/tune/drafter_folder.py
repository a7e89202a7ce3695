"""Writes the file of a draft head: int8 matrices with a scale by rows, as exits have them."""

import os
from pathlib import Path

import msgspec
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from shard.drafts.head_file import FILE, METADATA, VOCABULARY, HeadDescription, read_description
from shard.tune.draft_head import DraftHead
from shard.tune.folder import restored, rounded, stored
from shard.tune.layers import Tensors


def save_drafter(
    folder: Path, head: DraftHead, acceptance: dict[str, list[float]], vocabulary: str | None = None
) -> Path:
    """Write a head's file, rounded. `vocabulary`: relative path of what its low-rank product reads."""
    width = len(head.weights["fuse.weight"])
    described = HeadDescription(
        head.depths[:-1], head.layer, width, head.rerank, vocabulary or VOCABULARY, acceptance
    )
    tensors: Tensors = {}
    for name, weight in head.weights.items():
        tensors |= stored(name, weight)
    folder.mkdir(parents=True, exist_ok=True)
    temporary = folder / f"{FILE}.partial"
    save_file(tensors, temporary, {METADATA: msgspec.json.encode(described).decode()})
    os.replace(temporary, folder / FILE)
    return folder / FILE


def load_drafter(folder: Path, device: torch.device) -> DraftHead:
    """A head written before. Raises `HeadFileError` or `OSError`."""
    described = read_description(folder)
    with safe_open(folder / FILE, "pt", device=str(device)) as file:
        weights = restored({name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118
    return DraftHead(described.depths, described.last, weights, described.rerank)


def served_head(head: DraftHead) -> DraftHead:
    """The head with its weights rounded as in its file."""
    weights = {name: rounded(name, weight) for name, weight in head.weights.items()}
    return DraftHead(head.depths[:-1], head.layer, weights, head.rerank)
