"""The vocabulary of low-rank heads: a matrix (V, R) in place of the LM head's (V, H).

It starts as the best low-rank factorisation for actual hidden states. Rows are parametrised as the LM head
times a matrix (H, R), plus a difference: the shared matrix carries training on common tokens to rare ones,
whose rows hardly occur.
"""

from typing import Protocol

import msgspec
import torch
from torch.nn import functional

from shard.tune.layers import Backbone, Tensors

RARE = 0.01  # weight of a token that full depth never found likely


class Vocabulary(Protocol):
    """The source of the rows for logits."""

    @property
    def weights(self) -> Tensors:
        """The trainable tensors."""
        ...

    def rows(self, ids: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """The rows (M, R) of some tokens (M,)."""
        ...

    def whole(self) -> torch.Tensor:
        """All rows, (V, R) float32."""
        ...


class Fixed:
    """Fixed rows: the model's own LM head, or a vocabulary tuned before."""

    def __init__(self, matrix: torch.Tensor):
        self._matrix = matrix
        self._slim: torch.Tensor | None = None  # rows in the last requested dtype
        self.weights: Tensors = {}

    def rows(self, ids: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        if self._slim is None or self._slim.dtype is not dtype:
            self._slim = self._matrix.to(dtype)
        return self._slim[ids]

    def whole(self) -> torch.Tensor:
        return self._matrix


class LowRank:
    """Rows in training: `head` (V, H) @ weights["mix"] (H, R) + weights["own"] (V, R)."""

    def __init__(self, head: torch.Tensor, weights: Tensors):
        self.weights = weights
        self._head = head
        self._slim: torch.Tensor | None = None

    def rows(self, ids: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        if self._slim is None or self._slim.dtype is not dtype:
            self._slim = self._head.to(dtype)
        mixed = functional.linear(self._slim[ids], self.weights["mix"].t().to(dtype))
        return mixed + self.weights["own"][ids].to(dtype)

    @torch.no_grad()
    def whole(self) -> torch.Tensor:
        return self._head @ self.weights["mix"] + self.weights["own"]


class Factors(msgspec.Struct, frozen=True):
    """Initial factors: logits are approximately head @ mix @ reducer @ features."""

    mix: torch.Tensor  # (H, R)
    reducer: torch.Tensor  # (R, H)


def first_factors(back: Backbone, features: torch.Tensor, counts: torch.Tensor, rank: int) -> Factors:
    """The factors with the least squared error of logits over actual features (N, H).

    Tokens are weighted by full depth's expected `counts` (V,): at rank 96 this makes 54% of SmolLM2's choices
    right before any training, equal weights 31%.
    """
    wide = features.double()
    covariance = wide.t() @ wide / len(wide)
    ridge = 1e-6 * covariance.diagonal().mean() * torch.eye(len(covariance)).to(covariance)
    root = torch.linalg.cholesky(covariance + ridge)
    weight = (counts.double() + RARE)[:, None].to(wide.device)
    head = back.head.double()
    centred = head - (weight * head).sum(0, keepdim=True) / weight.sum()  # softmax ignores a common shift
    gram = root.t() @ (centred.t() @ (weight * centred)) @ root
    vectors = torch.linalg.eigh(gram).eigenvectors[:, -rank:].flip(1)  # (H, R)
    mix = root @ vectors
    reducer = torch.linalg.solve_triangular(root.t(), vectors, upper=True).t()
    # equal scale of both factors, so that one learning rate suits both
    sizes = (centred @ mix).square().mean(0).sqrt() / reducer.square().mean(1).sqrt()
    return Factors((mix / sizes.sqrt()).float(), (reducer * sizes.sqrt()[:, None]).float())


def low_rank(back: Backbone, factors: Factors) -> LowRank:
    """A trainable vocabulary from these factors."""
    own = factors.mix.new_zeros(back.head.shape[0], factors.mix.shape[1])
    return LowRank(back.head, {"mix": factors.mix.clone(), "own": own})
