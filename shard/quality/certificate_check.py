"""Checks that a shard serves what was certified. Each objection is a sentence for the operator.

A request with its own exit_threshold is not covered either, by its client's choice; that raises no objection.
"""

from pathlib import Path

import msgspec

from shard.messages import Criterion, Fill, Mode
from shard.quality.certificate import (
    Basis,
    Certificate,
    CertificateError,
    Guarantee,
    heads_digest,
    read_certificate,
)


class Served(msgspec.Struct, frozen=True):
    """What a shard is to serve."""

    mode: Mode
    fill: Fill
    criterion: Criterion
    dtype: str  # of weights and KV, see `certified_name`; arithmetic may be wider
    model: str  # digest of the weights
    depth: int
    thresholds: dict[int, float]  # of the exits in use, by layer


def objections(served: Served, exits: Path | None) -> list[str]:
    """Objections: where it goes beyond the certificate of its exit folder; none in lossless modes."""
    if served.mode.is_lossless:
        return []
    try:
        certificate = read_certificate(exits) if exits else None
    except CertificateError as error:
        return [f"{error}."]
    if exits is None or certificate is None:
        return [
            "These exits have no certificate: how often their tokens are not full depth's is not known. "
            "`helios calibrate` finds out."
        ]
    return _against(certificate, served, heads_digest(exits))


def _against(certificate: Certificate, served: Served, heads: str) -> list[str]:
    if served.mode == Mode.CAPPED:
        agreement = certificate.depth_agreement(served.depth, served.dtype)
        if agreement is None:
            return [f"The certificate says nothing of {served.depth} layers in {served.dtype}."]
        return _about(agreement.basis, served, heads)
    guarantee = _guarantee(certificate, served)
    if guarantee is None:
        known = [
            f"{guarantee.mode}, {guarantee.fill}, {guarantee.criterion}, {guarantee.basis.dtype}"
            for guarantee in certificate.guarantees
        ]
        return [
            f"The certificate does not cover {served.mode}, {served.fill}, {served.criterion}, "
            f"{served.dtype}; it covers: {'; '.join(known) or 'no mode with thresholds'}."
        ]
    return [*_about(guarantee.basis, served, heads), *_lower(guarantee, served)]


def _guarantee(certificate: Certificate, served: Served) -> Guarantee | None:
    kind = (served.mode, served.fill, served.criterion, served.dtype)
    for guarantee in certificate.guarantees:
        if (guarantee.mode, guarantee.fill, guarantee.criterion, guarantee.basis.dtype) == kind:
            return guarantee
    return None


def _about(basis: Basis, served: Served, heads: str) -> list[str]:
    said = []
    if basis.model != served.model:
        said.append(f"The certificate is of another model ({basis.model}), not of this one ({served.model}).")
    if basis.heads != heads:
        said.append("The exits have changed since they were certified.")
    return said


def _lower(guarantee: Guarantee, served: Served) -> list[str]:
    lower = [
        f"{threshold:g} at layer {layer} (certified: {guarantee.thresholds.get(layer, 1.0):g})"
        for layer, threshold in served.thresholds.items()
        if threshold < guarantee.thresholds.get(layer, 1.0)
    ]
    return [f"Thresholds are below the certified ones: {', '.join(lower)}."] if lower else []
