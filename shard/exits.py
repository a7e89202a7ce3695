"""Exits: where a model may be left, by which head, and how sure one must be to leave there.

An exit folder holds exits.json and, where its heads have weights of their own, exits.safetensors with tensors
named `exits.LAYER.…`. Without a folder, exits at given layers use the model's own norm and LM head, which is
what LayerSkip checkpoints (Elhoushi et al. 2024) are trained for.
"""

import enum
from pathlib import Path

import msgspec
import torch
from torch.nn import functional

from shard.models.checkpoint import Checkpoint, CheckpointError
from shard.models.load import Decoder
from shard.models.weights import Weights
from shard.ops.plain import Linear, PlainOps

DESCRIPTION = "exits.json"


class ExitError(ValueError):
    """An exit description that does not fit; one sentence names the field and the bound."""


class Criterion(enum.StrEnum):
    """What is compared with an exit's threshold: always in [0, 1], higher is surer."""

    SOFTMAX = "softmax"  # the top probability (CALM, Schuster et al. 2022)
    MARGIN = "margin"  # top probability less the second (DREX)
    SIMILARITY = "similarity"  # cosine of the hidden state with that at the boundary before (CALM)
    CLASSIFIER = "classifier"  # a learned probe on the hidden state


class HeadKind(enum.StrEnum):
    NORM = "norm"  # the model's final norm and LM head on the hidden state
    MLP = "mlp"  # a trained residual MLP before them (EE-LLM, Chen et al. 2023)
    BLOCK = "block"  # a trained decoder layer with KV of its own before them (EE-LLM, Balcony)


class ExitSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One exit, as exits.json has it. `layer` counts the layers run before it."""

    layer: int
    head: HeadKind = HeadKind.NORM
    threshold: float | None = None  # None: the one for all
    thresholds: dict[Criterion, float] = {}  # by criterion; before `threshold`


class ExitFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """exits.json."""

    exits: list[ExitSpec]
    num_layers: int | None = None  # of the model it was made for
    hidden_size: int | None = None


def read_exits(folder: Path) -> ExitFile:
    """exits.json of a folder. Raises `ExitError` for what it does not understand."""
    path = folder / DESCRIPTION
    try:
        return msgspec.json.decode(path.read_bytes(), type=ExitFile)
    except FileNotFoundError:
        raise ExitError(f"{path} does not exist: name a folder with exits, or give --exit-layers") from None
    except msgspec.DecodeError as error:
        raise ExitError(f"{path}: {error}") from None


def check_exits(file: ExitFile, num_layers: int, hidden_size: int) -> None:
    """Raises `ExitError` unless the exits fit a model of this shape."""
    if file.num_layers not in (None, num_layers):
        raise ExitError(f"exits were made for a model of {file.num_layers} layers, not {num_layers}")
    if file.hidden_size not in (None, hidden_size):
        raise ExitError(f"exits were made for hidden size {file.hidden_size}, not {hidden_size}")
    layers = [spec.layer for spec in file.exits]
    if layers != sorted(set(layers)):
        raise ExitError(f"exit layers must rise, not {layers}")
    for spec in file.exits:
        if not 1 <= spec.layer < num_layers:
            raise ExitError(f"exit layer {spec.layer} is out of range: between 1 and {num_layers - 1}")
        for threshold in (spec.threshold, *spec.thresholds.values()):
            if threshold is not None and not 0 <= threshold <= 1:
                raise ExitError(f"threshold {threshold} of exit layer {spec.layer} is not in [0, 1]")


class MlpHead:
    """hidden + down(silu(up(norm(hidden))))."""

    def __init__(self, weights: Weights, at: str, hidden_size: int, eps: float, ops: PlainOps):
        self._norm = weights.read(at + "norm.weight", (hidden_size,))
        self._up = weights.linear(at + "up")
        self._down = weights.linear(at + "down")
        self._eps = eps
        self._ops = ops
        if self._up.shape[1] != hidden_size or self._down.shape != (hidden_size, self._up.shape[0]):
            raise CheckpointError(f"{at}up and {at}down do not fit hidden size {hidden_size}")

    def __call__(self, hidden: torch.Tensor) -> torch.Tensor:
        inner = functional.silu(self._up(self._ops.rms_norm(hidden, self._norm, self._eps)))
        return self._down.add(inner, hidden)


class Exit:
    """One exit of a loaded model: its head, its probe and its thresholds."""

    def __init__(self, spec: ExitSpec, decoder: Decoder, weights: Weights | None, ops: PlainOps):
        self.layer = spec.layer
        self.head = spec.head
        self._spec = spec
        self._decoder = decoder
        self._mlp: MlpHead | None = None
        self.block: int | None = None  # index of the head's own layer in the decoder
        self._probe: Linear | None = None
        at, hidden_size = f"exits.{spec.layer}.", decoder.shape.hidden_size
        if spec.head is HeadKind.MLP:
            self._mlp = MlpHead(
                _trained(weights, spec), at + "mlp.", hidden_size, decoder.shape.norm_eps, ops
            )
        if spec.head is HeadKind.BLOCK:
            self.block = decoder.add_layer(_trained(weights, spec), at + "block.")
        if weights is not None and at + "probe.weight" in weights:
            self._probe = weights.linear(at + "probe")
            if self._probe.shape != (1, hidden_size):
                raise CheckpointError(
                    f"{at}probe.weight has shape {self._probe.shape}, not (1, {hidden_size})"
                )

    @property
    def has_probe(self) -> bool:
        return self._probe is not None

    def threshold(self, criterion: Criterion, default: float) -> float:
        """What a confidence by `criterion` must reach to leave here."""
        own = self._spec.thresholds.get(criterion, self._spec.threshold)
        return default if own is None else own

    def features(self, hidden: torch.Tensor) -> torch.Tensor:
        """What the LM head reads here, of hidden states (N, H) behind the head's own block, if it has one."""
        return self._decoder.normed(hidden if self._mlp is None else self._mlp(hidden))

    def probe(self, hidden: torch.Tensor) -> torch.Tensor:
        """The classifier's confidence (N,) in [0, 1] of hidden states (N, H)."""
        assert self._probe is not None
        return torch.sigmoid(self._probe(hidden).float())[:, 0]


def load_exits(
    file: ExitFile, folder: Path | None, decoder: Decoder, ops: PlainOps, last_only: bool
) -> list[Exit]:
    """The exits of a loaded model, in order; or the one behind its last layer loaded.

    Raises `ExitError` or `CheckpointError`, one sentence each.
    """
    shape, depth = decoder.shape, decoder.depth
    check_exits(file, shape.num_layers, shape.hidden_size)
    specs = [spec for spec in file.exits if (spec.layer == depth if last_only else spec.layer < depth)]
    if not specs:
        layers = [spec.layer for spec in file.exits]
        raise ExitError(f"there is no exit to use at {depth} layers loaded; exits are at {layers}")
    weights = None
    if folder is not None and any(folder.glob("*.safetensors")):
        weights = Weights(Checkpoint(folder), "", ops, decoder.embedding.new_empty(0))
    return [Exit(spec, decoder, weights, ops) for spec in specs]


def check_criterion(exits: list[Exit], criterion: Criterion) -> None:
    """Raises `ExitError` when an exit lacks what the criterion asks it."""
    for exit in exits:
        if criterion is Criterion.CLASSIFIER and not exit.has_probe:
            raise ExitError(f"exit layer {exit.layer} has no probe, which criterion 'classifier' asks")


def _trained(weights: Weights | None, spec: ExitSpec) -> Weights:
    if weights is None:
        raise ExitError(f"exit layer {spec.layer} has a {spec.head} head, but there is no exits.safetensors")
    return weights
