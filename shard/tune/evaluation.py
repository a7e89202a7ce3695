"""Evaluates trained exits on held-out text against full depth."""

from collections.abc import Sequence

import msgspec
import torch

from shard.tune.batches import Place, Source, batches_of, load_batch
from shard.tune.heads import Head
from shard.tune.training import Student

POSITIONS = 2048  # positions whose whole logits are held at once
THRESHOLDS = (0.5, 0.7, 0.8, 0.9, 0.95)


class ExitPredictions(msgspec.Struct, frozen=True):
    """One exit's predictions at N positions."""

    agrees: torch.Tensor  # (N,) bool
    confidence: torch.Tensor  # (N,) top probability
    hidden: torch.Tensor | None = None  # (N, H) input of a probe


class Point(msgspec.Struct, frozen=True):
    """Statistics of an exit at a threshold."""

    threshold: float
    coverage: float  # share of tokens that leave
    agreement: float | None  # of those that leave; None: none leave


class Curve(msgspec.Struct, frozen=True):
    """Statistics of one exit on one text, by threshold."""

    num_tokens: int
    agreement: float
    points: list[Point]


@torch.no_grad()
def predictions_of(
    student: Student,
    vocabulary: torch.Tensor,
    sources: Sequence[Source],
    places: Sequence[Place],
    states: bool,
) -> dict[int, ExitPredictions]:
    """Evaluate every exit at the places' positions, by layer; `vocabulary` (V, R) is the served one."""
    rows, own = vocabulary.to(student.to), student.back.head.to(student.to)
    parts: dict[int, list[ExitPredictions]] = {layer: [] for layer in student.layers}
    for some in batches_of(sources, places, POSITIONS):
        batch = load_batch(sources, some, student.layers, student.to)
        for head in student.heads:
            features = head.features(student.back, batch.states[head.layer], batch.rows)
            logits = logits_of(head, features, rows, own)
            best = logits.max(-1)
            parts[head.layer].append(
                ExitPredictions(
                    best.indices == batch.targets.choice,
                    (best.values - logits.logsumexp(-1)).exp(),
                    batch.rows.select(batch.states[head.layer]) if states else None,
                )
            )
    return {layer: _joined(seen) for layer, seen in parts.items()}


def logits_of(head: Head, features: torch.Tensor, rows: torch.Tensor, own: torch.Tensor) -> torch.Tensor:
    """Logits (N, V), float32, of features (N, H), computed as in serving.

    `rows` (V, R) is the head's vocabulary, `own` (V, H) the model's LM head.
    """
    logits = (head.reduced(features) @ rows.t()).float()
    if head.rerank is None:
        return logits
    likely = logits.topk(min(head.rerank, len(own)), dim=-1, sorted=False).indices
    exact = torch.einsum("nkh,nh->nk", own[likely], head.adapted(features))
    return logits.scatter_(1, likely, exact.float())


def curve_of(agrees: torch.Tensor, confidence: torch.Tensor) -> Curve:
    """Agreement and coverage at a few thresholds."""
    points = []
    for threshold in THRESHOLDS:
        leaves = confidence >= threshold
        share = float(agrees[leaves].float().mean()) if leaves.any() else None
        points.append(Point(threshold, float(leaves.float().mean()), share))
    return Curve(len(agrees), float(agrees.float().mean()), points)


def _joined(parts: list[ExitPredictions]) -> ExitPredictions:
    hidden = [part.hidden for part in parts if part.hidden is not None]
    return ExitPredictions(
        torch.cat([part.agrees for part in parts]).cpu(),
        torch.cat([part.confidence for part in parts]).cpu(),
        torch.cat(hidden) if hidden else None,
    )
