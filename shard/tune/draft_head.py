"""The draft head in training: one decoder layer, unrolled on its own output as drafts are (EAGLE-3).

At position q it reads what the model computed at q - 1, its hidden states at some depths, and the token at q;
it predicts the token at q + 1. Later tokens of a draft have no states of the model: there the head reads its
own output at q - 1 instead. Training-time test (Li et al. 2025, section 3.2): a pass over a text for each
drafted token, in which a query sees the keys that it would see in a draft.
"""

from collections.abc import Iterator

import torch
from torch.nn import functional

from shard.exits.exit_heads import HeadKind
from shard.tune.heads import Head
from shard.tune.layers import Backbone, Tensors, finish, projected, weigh


class DraftHead(Head):
    """Weights by their names in drafter.safetensors.

    `fuse.weight` (H, (D + 2) H) reads the states at D depths, the last ones and the token's embedding;
    `again.weight` (H, 2 H) the head's own output and the embedding; `block.…` is a layer of its family.
    """

    def __init__(self, depths: list[int], last: int, weights: Tensors, rerank: int | None):
        super().__init__(last, HeadKind.BLOCK, weights, rerank)
        self.depths = [*depths, last]
        self._block = {
            name.removeprefix("block."): value for name, value in weights.items() if name.startswith("block.")
        }

    def unroll(
        self,
        back: Backbone,
        states: dict[int, torch.Tensor],
        embedded: torch.Tensor,
        num_steps: int,
    ) -> Iterator[torch.Tensor]:
        """Outputs (B, T, H) at every position as the first, second, … token of a draft.

        `states` (B, T, H) by depth; `embedded` (B, T, H) of the tokens themselves.
        """
        embedded = unit(back, embedded)
        before = [unit(back, shifted(states[depth])) for depth in self.depths]
        hidden = self._linear("fuse.weight", torch.cat((*before, embedded), dim=-1))
        keys: list[torch.Tensor] = []
        values: list[torch.Tensor] = []
        for step in range(num_steps):
            q, k, v = projected(back, self._block, hidden)
            keys.append(k)
            values.append(v)
            mask = draft_mask(hidden.shape[1], step + 1, back.shape.heads.window, hidden.device)
            attended = weigh(back, q, torch.cat(keys, dim=1), torch.cat(values, dim=1), mask)
            out = finish(back, self._block, hidden, attended)
            yield out
            hidden = self._linear("again.weight", torch.cat((unit(back, shifted(out)), embedded), dim=-1))


def draft_mask(num_tokens: int, num_steps: int, window: int, device: torch.device) -> torch.Tensor | None:
    """Which keys (T, num_steps T) a query of the draft's token `num_steps` sees; None: all before it.

    Of the first pass, whose keys rest on the model's states, those before the draft and of its first token;
    of each later pass the one key of the draft itself.
    """
    if num_steps == 1 and not window:
        return None
    at = torch.arange(num_tokens, device=device)
    back = at[:, None] - at[None, :]
    first = back >= num_steps - 1
    if window:
        first &= back < window
    own = [back == num_steps - 1 - step for step in range(1, num_steps)]
    return torch.cat((first, *own), dim=1)


def shifted(hidden: torch.Tensor) -> torch.Tensor:
    """(B, T, H) moved one position on; zeros come first."""
    return functional.pad(hidden, (0, 0, 1, 0))[:, :-1]


def unit(back: Backbone, hidden: torch.Tensor) -> torch.Tensor:
    """(…, H) divided by its root mean square, in the dtype given."""
    return functional.rms_norm(hidden.float(), hidden.shape[-1:], eps=back.shape.norm_eps).to(hidden.dtype)


def first_draft_weights(
    back: Backbone, depths: list[int], vocabulary: torch.Tensor | None, scale: float
) -> Tensors:
    """Initial weights: a copy of the layer behind the deepest of `depths`, fed with the states at that depth.

    `scale` is the root mean square of those states. `vocabulary` (V, R): of a low-rank head; what reduces
    features for it is the least-squares fit to the LM head's logits.
    """
    width, device = back.shape.hidden_size, back.head.device
    one = scale * torch.eye(width, device=device)
    none = torch.zeros_like(one)
    weights: Tensors = {
        "fuse.weight": torch.cat([none] * (len(depths) - 1) + [one, none, one], dim=1),
        "again.weight": torch.cat([one, one], dim=1),
    }
    weights |= {f"block.{name}": value.clone() for name, value in back.layer(depths[-1]).items()}
    if vocabulary is not None:
        gram = vocabulary.t() @ vocabulary
        weights["low_rank.weight"] = torch.linalg.solve(gram, vocabulary.t() @ back.head)
        weights["rerank.weight"] = torch.eye(width, device=device)
    return weights
