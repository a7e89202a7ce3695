"""certificate.json of an exit folder: what calibration proved of its exits, and of what it proved it.

A guarantee holds for one model, one set of heads, one mode, fill, criterion and dtype, and for prompts like
those it was made with. Imports msgspec alone, since the router's policy reads it too.
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
    """What a statement rests on."""

    model: str  # digest of the weights
    heads: str  # digest of the exit folder, without its thresholds
    dtype: str  # of weights and KV; arithmetic may be wider
    prompts: str  # the set's name, or the file's
    prompts_digest: str
    num_sequences: int
    max_new_tokens: int
    temperature: float
    seed: int
    date: str  # ISO 8601, UTC


class Setting(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One setting of all thresholds, and what answers generated with it were like."""

    thresholds: dict[int, float]  # by exit layer; 1: nobody leaves there
    risk: float  # mean over sequences of (early tokens that full depth would not have said / tokens)
    p_value: float  # of the hypothesis that the true risk is above the bound
    coverage: dict[int, float]  # share of tokens by the layer at which they were taken
    expected_depth: float  # layers per token


class Guarantee(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """With at least this confidence, the risk of the thresholds is at most `risk`, in this mode."""

    mode: str
    fill: str
    criterion: str
    risk: float
    confidence: float
    thresholds: dict[int, float]  # by exit layer; 1: no leaving there could be allowed
    curve: list[Setting]  # in the order walked; the first that is not allowed is the last
    basis: Basis


class DepthAgreement(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`capped` at one depth: how often its tokens are what full depth would have said there."""

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
        """What is known of `capped` at a depth; None if nothing is."""
        return next(
            (known for known in self.depths if (known.depth, known.basis.dtype) == (depth, dtype)), None
        )

    def with_guarantee(self, new: Guarantee) -> "Certificate":
        """With a guarantee in place of an earlier one of its kind."""
        others = [known for known in self.guarantees if _kind(known) != _kind(new)]
        return msgspec.structs.replace(self, guarantees=[*others, new])

    def with_depths(self, new: list[DepthAgreement]) -> "Certificate":
        """With what was found at some depths in place of what was known of them."""
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
    """Into an exit folder, whole or not at all."""
    partial = folder / (CERTIFICATE + ".partial")
    partial.write_bytes(msgspec.json.format(msgspec.json.encode(certificate), indent=1) + b"\n")
    partial.replace(folder / CERTIFICATE)


def heads_digest(folder: Path) -> str:
    """Names the exits of a folder whatever their thresholds: other heads need another certificate."""
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
