"""certificate.json of an exit folder: the guarantees of a calibration, and their conditions.

A guarantee holds for one model, one set of heads, one mode, fill, criterion and dtype, and for prompts like
the calibration's. Imports msgspec alone, since the router's policy reads it too.
"""

import hashlib
import json
from pathlib import Path

import msgspec

CERTIFICATE = "certificate.json"
_THRESHOLDS = ("threshold", "thresholds", "breach_thresholds")


class CertificateError(ValueError):
    """A certificate that cannot be read; one sentence."""


class Basis(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The conditions of a statement."""

    model: str  # digest of the weights
    heads: str  # digest of the exit folder, without its thresholds
    dtype: str  # of weights and KV, see `certified_name`; arithmetic may be wider
    prompts: str  # the set's name, or the file's
    prompts_digest: str
    num_sequences: int
    max_new_tokens: int
    temperature: float
    seed: int
    date: str  # ISO 8601, UTC


class Setting(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One setting of all thresholds, and statistics of answers generated with it."""

    thresholds: dict[int, float]  # by exit layer; 1: no token leaves there
    risk: float  # mean over sequences of (early tokens that full depth would not have said / tokens)
    p_value: float  # of the hypothesis that the true risk is above the bound
    coverage: dict[int, float]  # share of tokens by exit layer
    expected_depth: float  # layers per token


class Guarantee(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """With at least this confidence, the risk of the thresholds is at most `risk`, in this mode."""

    mode: str
    fill: str
    criterion: str
    risk: float
    confidence: float
    thresholds: dict[int, float]  # by exit layer; 1: no exit allowed there
    curve: list[Setting]  # in the order tested; only the last may have failed
    basis: Basis


class DepthAgreement(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Agreement of `capped` at one depth with full depth."""

    depth: int
    agreement: float  # mean over sequences
    lower_bound: float  # of the true mean, with `confidence` for all depths of one calibration together
    confidence: float
    basis: Basis


class Certificate(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """certificate.json."""

    guarantees: list[Guarantee] = []  # one at most for a mode, fill, criterion and dtype
    depths: list[DepthAgreement] = []  # one at most for a depth and dtype

    def depth_agreement(self, depth: int, dtype: str) -> DepthAgreement | None:
        """The agreement of `capped` at a depth; None if unknown."""
        return next(
            (known for known in self.depths if (known.depth, known.basis.dtype) == (depth, dtype)), None
        )

    def with_guarantee(self, new: Guarantee) -> "Certificate":
        """A copy with a guarantee added, in place of an earlier one of its kind."""
        others = [known for known in self.guarantees if _kind(known) != _kind(new)]
        return msgspec.structs.replace(self, guarantees=[*others, new])

    def with_depths(self, new: list[DepthAgreement]) -> "Certificate":
        """A copy with agreements of depths added, in place of earlier ones."""
        found = {(known.depth, known.basis.dtype): known for known in (*self.depths, *new)}
        return msgspec.structs.replace(self, depths=[found[key] for key in sorted(found)])


def _kind(guarantee: Guarantee) -> tuple[str, ...]:
    return guarantee.mode, guarantee.fill, guarantee.criterion, guarantee.basis.dtype


def read_certificate(folder: Path) -> Certificate | None:
    """The certificate of an exit folder; None if it has none. Raises `CertificateError`."""
    path = folder / CERTIFICATE
    try:
        return msgspec.json.decode(path.read_bytes(), type=Certificate)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise CertificateError(f"{path} cannot be read: {error.strerror}") from None
    except msgspec.DecodeError as error:
        raise CertificateError(
            f"{path} is not a certificate ({error}): run `helios calibrate` again"
        ) from None


def write_certificate(folder: Path, certificate: Certificate) -> None:
    """Write the certificate into an exit folder, atomically."""
    partial = folder / (CERTIFICATE + ".partial")
    partial.write_bytes(msgspec.json.format(msgspec.json.encode(certificate), indent=1) + b"\n")
    partial.replace(folder / CERTIFICATE)


def heads_digest(folder: Path) -> str:
    """Digest of a folder's exits without their thresholds: other heads need another certificate."""
    described = json.loads((folder / "exits.json").read_bytes())
    for spec in described["exits"]:
        for name in _THRESHOLDS:
            spec.pop(name, None)
    state = hashlib.sha256(json.dumps(described, sort_keys=True).encode())
    files = sorted(folder.glob("*.safetensors"))
    if shared := described.get("vocabulary"):
        files.append(folder / shared)
    for file in files:
        state.update(hashlib.sha256(file.read_bytes()).digest())
    return state.hexdigest()[:12]
