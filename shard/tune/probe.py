"""The probe of an exit: a linear classifier of hidden states that predicts whether running the head pays.

It learns whether the exit's choice equals full depth's, on passages that no head was trained on: on training
passages heads are right too often.
"""

import torch
from torch.nn import functional

from shard.tune.layers import Tensors

PENALTY = 1e-4  # on the squared weights of standardised states
MAX_ITERATIONS = 60


def fit_probe(hidden: torch.Tensor, agrees: torch.Tensor) -> Tensors:
    """Weights (1, H) and bias (1,) of a logistic regression from hidden states (N, H) to `agrees` (N,)."""
    wide = hidden.float().cpu()
    mean, deviation = wide.mean(0), wide.std(0).clamp_min(1e-4)
    standard, goal = (wide - mean) / deviation, agrees.float().cpu()
    weight = torch.zeros(wide.shape[1], requires_grad=True)
    share = goal.mean().clamp(0.01, 0.99)
    bias = torch.logit(share).reshape(1).requires_grad_()
    optimizer = torch.optim.LBFGS([weight, bias], max_iter=MAX_ITERATIONS, line_search_fn="strong_wolfe")

    def loss() -> torch.Tensor:
        optimizer.zero_grad()
        value = functional.binary_cross_entropy_with_logits(standard @ weight + bias, goal)
        value = value + PENALTY * weight.square().sum()
        value.backward()
        return value

    optimizer.step(loss)
    own = weight.detach() / deviation
    return {"probe.weight": own[None], "probe.bias": bias.detach() - (own @ mean)}


def probed(probe: Tensors, hidden: torch.Tensor) -> torch.Tensor:
    """The probability (N,) that asking the exit pays."""
    return torch.sigmoid(hidden.float().cpu() @ probe["probe.weight"][0] + probe["probe.bias"])
