"""Reads each candidate's profile from its model and exit files, or from a simulated model's cost model."""

from pathlib import Path

import msgspec

from router.catalog.catalog import CatalogEntry
from router.catalog.memory_check import weight_bytes
from router.catalog.model_shape import read_shape
from router.catalog.profile import CandidateProfile
from router.settings.config import Config
from shard.quality.certificate import Certificate, CertificateError, Guarantee, read_certificate


def profile_of(config: Config, entry: CatalogEntry) -> CandidateProfile:
    """The profile of a candidate. One with unreadable files is unavailable, for that reason."""
    try:
        if config.device == "sim":
            return _simulated(config, entry)
        return _real(config, entry)
    except (OSError, ValueError, KeyError, CertificateError) as error:
        return _unknown(entry, entry.unavailable_reason or f"what it is cannot be read: {error}")


def _real(config: Config, entry: CatalogEntry) -> CandidateProfile:
    if entry.unavailable_reason:
        return _unknown(entry, entry.unavailable_reason)
    shape, dtype = read_shape(entry.folder), config.storage_dtype
    total = weight_bytes(entry.folder, dtype, None, config.weight_format(entry.folder, entry.candidate.mode))
    other = min(total // 2, shape.table_bytes(dtype))
    return CandidateProfile(
        candidate=entry.candidate,
        num_layers=entry.num_layers,
        layer_bytes=(total - other) // entry.num_layers,
        other_bytes=other,
        kv_bytes=shape.kv_bytes(config.kv_dtype),
        proven=_proven(config, entry),
    )


def _proven(config: Config, entry: CatalogEntry) -> dict[int, float]:
    """Certified lower bounds of agreement by depth; at full depth that of the candidate's mode."""
    candidate = entry.candidate
    certificate = None if candidate.exits is None else read_certificate(Path(candidate.exits))
    proven = {entry.num_layers: 1.0} if candidate.mode.is_lossless else {}
    if certificate is None:
        return proven
    dtype = config.certified_dtype(entry.folder, candidate.mode)
    proven |= {known.depth: known.lower_bound for known in certificate.depths if known.basis.dtype == dtype}
    guarantee = _guarantee(certificate, config, candidate.mode, dtype)
    if guarantee is not None:
        proven[entry.num_layers] = 1 - guarantee.risk
    return proven


def _guarantee(certificate: Certificate, config: Config, mode: str, dtype: str) -> Guarantee | None:
    kind = (mode, config.kv_fill, config.exit_criterion, dtype)
    found = (
        guarantee
        for guarantee in certificate.guarantees
        if (guarantee.mode, guarantee.fill, guarantee.criterion, guarantee.basis.dtype) == kind
    )
    return next(found, None)


def _unknown(entry: CatalogEntry, unavailable_reason: str) -> CandidateProfile:
    num_layers = max(1, entry.num_layers)
    return CandidateProfile(
        candidate=entry.candidate,
        num_layers=num_layers,
        layer_bytes=1,
        other_bytes=0,
        kv_bytes=1,
        unavailable_reason=unavailable_reason,
    )


class _SimClass(msgspec.Struct, frozen=True):
    """The fields of a simulated prompt class that are needed here."""

    settled: dict[int, float] = {}
    agreement: float = 0.85

    def agreement_at(self, depth: int) -> float:
        settled = sum(share for layer, share in self.settled.items() if layer <= depth)
        return settled + (1 - settled) * self.agreement


class _SimCosts(msgspec.Struct, frozen=True):
    """The fields of a cost model that are needed here, with its defaults."""

    num_layers: int = 30
    layer_bytes: int = 7_080_000
    base_bytes: int = 56_600_000
    kv_bytes_per_token: int = 23_040
    classes: tuple[_SimClass, ...] = (_SimClass({10: 0.4, 20: 0.35}),)


def _simulated(config: Config, entry: CatalogEntry) -> CandidateProfile:
    """A simulated model's profile, with its cost model's agreement as if certified."""
    path = entry.candidate.cost_model or config.cost_model
    costs = msgspec.json.decode(Path(path).read_bytes() if path else b"{}", type=_SimCosts)
    least = max if entry.candidate.prompts else min  # made for one kind of prompts, or for all
    depths = [choice.depth for choice in entry.choices if choice.depth < entry.num_layers]
    return CandidateProfile(
        candidate=entry.candidate,
        num_layers=entry.num_layers,
        layer_bytes=costs.layer_bytes,
        other_bytes=costs.base_bytes,
        kv_bytes=costs.kv_bytes_per_token // costs.num_layers,
        proven={depth: least(kind.agreement_at(depth) for kind in costs.classes) for depth in depths}
        | {entry.num_layers: 1.0},
    )
