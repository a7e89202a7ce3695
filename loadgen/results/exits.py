"""Exit layers of tokens, by class of prompt and over time.

Only for servers that report each token's exit layer; empty for others.
"""

from collections.abc import Sequence

import msgspec
import numpy as np

from loadgen.client.records import Record


class Depth(msgspec.Struct, frozen=True):
    """Exit layers of a group of requests."""

    num_tokens: int
    mean_layer: float
    mean_confidence: float | None
    share_by_layer: dict[int, float]


class Heat(msgspec.Struct, frozen=True):
    """Tokens by time and layer: `counts[i][j]` left at `layers[i]` in the bin from `starts_s[j]`."""

    layers: list[int]
    starts_s: list[float]
    counts: list[list[int]]


class Exits(msgspec.Struct, frozen=True):
    total: Depth
    by_group: dict[str, Depth]
    heat: Heat


def exit_figures(records: Sequence[Record], starts_s: Sequence[float], began: float) -> Exits | None:
    """Exit figures; None without reported exit layers. `starts_s` are time bins, in seconds since `began`."""
    known = [record for record in records if len(record.exit_layers)]
    if not known:
        return None
    groups = sorted({record.group for record in known})
    by_group = {group: _depth([record for record in known if record.group == group]) for group in groups}
    return Exits(_depth(known), by_group, _heat(known, starts_s, began))


def _depth(records: Sequence[Record]) -> Depth:
    layers = np.concatenate([np.asarray(record.exit_layers) for record in records])
    confidences = np.concatenate([np.asarray(record.confidences) for record in records])
    known = confidences[~np.isnan(confidences)]
    values, counts = np.unique(layers, return_counts=True)
    return Depth(
        num_tokens=int(layers.size),
        mean_layer=float(layers.mean()),
        mean_confidence=float(known.mean()) if known.size else None,
        share_by_layer={int(v): float(c) / layers.size for v, c in zip(values, counts, strict=True)},
    )


def _heat(records: Sequence[Record], starts_s: Sequence[float], began: float) -> Heat:
    """Tokens by time and layer. If fewer layers than times were reported, they are matched from the front."""
    pairs = [(len(r.exit_layers), len(r.token_times)) for r in records]
    layers = np.concatenate(
        [np.asarray(r.exit_layers)[: min(n)] for r, n in zip(records, pairs, strict=True)]
    )
    times = np.concatenate([np.asarray(r.token_times)[: min(n)] for r, n in zip(records, pairs, strict=True)])
    bins = np.clip(
        np.searchsorted(np.asarray(starts_s), times - began, side="right") - 1, 0, len(starts_s) - 1
    )
    values = np.unique(layers)
    counts = np.zeros((values.size, len(starts_s)), dtype=np.int64)
    np.add.at(counts, (np.searchsorted(values, layers), bins), 1)
    return Heat([int(value) for value in values], list(starts_s), counts.tolist())
