"""Adapters for reranking heads: map an exit's features to the LM head's input."""

from collections.abc import Sequence

import torch

from shard.tune.batches import Place, Source, batches_of, load_batch
from shard.tune.heads import Head
from shard.tune.layers import Backbone, Tensors

POSITIONS = 16384  # positions used to fit the first matrices
RIDGE = 1e-3  # relative to the features' mean square
AT_ONCE = 2048


@torch.no_grad()
def first_turns(
    back: Backbone,
    heads: Sequence[Head],
    sources: Sequence[Source],
    places: Sequence[Place],
    to: torch.Tensor,
) -> dict[int, Tensors]:
    """By exit layer, the matrix (H, H) that maps a head's features to full depth's, by least squares.

    Features trained for a low-rank product, or untrained ones, do not suit the LM head: with this matrix
    SmolLM2's untrained exit 25 is right for 72% of tokens, without it for 30%.
    """
    width, depth = back.shape.hidden_size, back.shape.num_layers
    seen = {head.layer: torch.zeros(2, width, width, device=to.device) for head in heads}
    num_positions = 0
    for some in batches_of(sources, places, AT_ONCE) if heads else ():
        batch = load_batch(sources, some, [*seen, depth], to)
        goal = back.normed(batch.rows.select(batch.states[depth])).float()
        for head in heads:
            features = head.features(back, batch.states[head.layer], batch.rows).float()
            seen[head.layer] += torch.stack((features.t() @ features, features.t() @ goal))
        num_positions += len(goal)
        if num_positions >= POSITIONS:
            break
    return {layer: {"rerank.weight": _solved(*sums)} for layer, sums in seen.items()}


def _solved(gram: torch.Tensor, cross: torch.Tensor) -> torch.Tensor:
    ridge = RIDGE * gram.diagonal().mean() * torch.eye(len(gram), device=gram.device)
    adapter: torch.Tensor = torch.linalg.solve(gram + ridge, cross)
    return adapter.t().contiguous()
