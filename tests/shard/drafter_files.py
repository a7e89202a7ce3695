"""Draft heads with random weights, for any tiny model."""

from pathlib import Path

import torch
from safetensors.torch import save_file

from shard.drafts.head_file import FILE, HeadDescription
from shard.models.shape import read_config, shape_of
from shard.tune.draft_head import DraftHead, first_draft_weights
from shard.tune.layers import Backbone, read_backbone

DEPTHS = [1, 2]


def random_head(model: Path, rank: int | None = None, rerank: int | None = None) -> DraftHead:
    """A head of a tiny model, near what training begins with."""
    back, generator = backbone(model), torch.Generator().manual_seed(5)
    vocabulary = None if rank is None else random_vocabulary(model, rank)
    weights = first_draft_weights(back, DEPTHS, vocabulary, 1.0)
    for name, weight in weights.items():
        if weight.ndim == 2:
            weights[name] = (
                weight + 0.3 * torch.randn(weight.shape, generator=generator) / weight.shape[1] ** 0.5
            )
    return DraftHead(DEPTHS, back.shape.num_layers, weights, rerank)


def random_vocabulary(model: Path, rank: int) -> torch.Tensor:
    """(V, rank)"""
    size = shape_of(read_config(model)).vocab_size
    return torch.randn(size, rank, generator=torch.Generator().manual_seed(6)) * rank**-0.5


def backbone(model: Path) -> Backbone:
    return read_backbone(model, 256, torch.device("cpu"))


def write_plain(folder: Path, head: DraftHead, vocabulary: torch.Tensor | None = None) -> Path:
    """The head's file with its weights as they are, not rounded."""
    import msgspec

    folder.mkdir(parents=True, exist_ok=True)
    description = HeadDescription(
        head.depths[:-1], head.layer, head.weights["again.weight"].shape[0], head.rerank
    )
    text = msgspec.json.encode(description).decode()
    save_file({k: v.contiguous() for k, v in head.weights.items()}, folder / FILE, {"drafter": text})
    if vocabulary is not None:
        save_file({"vocabulary.weight": vocabulary}, folder / "vocabulary.safetensors")
    return folder
