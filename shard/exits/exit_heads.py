"""Exits of a model: their layers, heads and thresholds.

An exit folder holds exits.json and, where its heads have weights of their own, exits.safetensors with tensors
named `exits.LAYER.…`. Without a folder, exits at given layers use the model's own norm and LM head, which is
what LayerSkip checkpoints (Elhoushi et al. 2024) are trained for.

The LM head costs as much as some layers. An exit may use a head of low rank instead, whose larger factor,
`vocabulary.weight` (V, rank), all exits share; and its probe may select the rows for which the head runs.
"""

import enum
from pathlib import Path

import msgspec
import torch
from torch.nn import functional

from shard.exits.rerank_head import RerankHead
from shard.messages import Criterion
from shard.models.checkpoint import Checkpoint, CheckpointError
from shard.models.load import Decoder
from shard.models.weight_cache import WeightReader, source
from shard.models.weights import Weights
from shard.ops.plain import Linear, PlainOps

DESCRIPTION = "exits.json"
WEIGHTS = "exits.safetensors"

Vocabulary = Linear | RerankHead  # turns features (N, F) into logits (N, V)


class ExitError(ValueError):
    """An invalid description of exits; one sentence names the field and the bound."""


class HeadKind(enum.StrEnum):
    NORM = "norm"  # the model's final norm and LM head on the hidden state
    MLP = "mlp"  # a trained residual MLP before them (EE-LLM, Chen et al. 2023)
    BLOCK = "block"  # a trained decoder layer with KV of its own before them (EE-LLM, Balcony)


class ExitSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One exit, as exits.json has it. `layer` counts the layers run before it."""

    layer: int
    head: HeadKind = HeadKind.NORM
    rank: int | None = None  # rank of the head; None: the LM head
    rerank: int | None = None  # number of likeliest tokens that get the LM head's exact logits
    probe_floor: float | None = None  # with criteria of logits: least probe confidence to run the head
    threshold: float | None = None  # None: the default
    thresholds: dict[Criterion, float] = {}  # by criterion; before `threshold`
    # replace thresholds in `capped`: a confidence below is a breach
    breach_thresholds: dict[Criterion, float] = {}


class ExitFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """exits.json."""

    exits: list[ExitSpec]
    num_layers: int | None = None  # of the model it was made for
    hidden_size: int | None = None
    vocabulary: str | None = None  # relative path of `vocabulary.weight`'s file; None: exits.safetensors


def read_exits(folder: Path) -> ExitFile:
    """Read a folder's exits.json. Raises `ExitError` for an invalid one."""
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
        if spec.rerank is not None and (spec.rank is None or spec.rerank < 1):
            raise ExitError(f"rerank {spec.rerank} of exit layer {spec.layer} needs a rank and is at least 1")
        if spec.rank is not None and not 1 <= spec.rank <= hidden_size:
            raise ExitError(f"rank {spec.rank} of exit layer {spec.layer} is not in 1 .. {hidden_size}")
        bounds = {
            "threshold": (spec.threshold, *spec.thresholds.values(), *spec.breach_thresholds.values()),
            "probe_floor": (spec.probe_floor,),
        }
        for name, values in bounds.items():
            for value in values:
                if value is not None and not 0 <= value <= 1:
                    raise ExitError(f"{name} {value} of exit layer {spec.layer} is not in [0, 1]")


class MlpHead:
    """hidden + down(silu(up(norm(hidden))))."""

    def __init__(self, weights: Weights, at: str, hidden_size: int, eps: float, ops: PlainOps):
        self._norm = weights.read(at + "norm.weight", (hidden_size,))
        self.up = weights.linear(at + "up")
        self._down = weights.linear(at + "down")
        self._eps = eps
        self._ops = ops
        if self.up.shape[1] != hidden_size or self._down.shape != (hidden_size, self.up.shape[0]):
            raise CheckpointError(f"{at}up and {at}down do not fit hidden size {hidden_size}")

    def __call__(self, hidden: torch.Tensor) -> torch.Tensor:
        inner = functional.silu(self.up(self._ops.rms_norm(hidden, self._norm, self._eps)))
        return self._down.add(inner, hidden)


class TrainedHeads:
    """Weights in an exit folder, read on first use."""

    def __init__(self, file: ExitFile, folder: Path | None, decoder: Decoder, reader: WeightReader):
        self.ops = reader.ops
        self._reader = reader
        self.decoder = decoder
        self._file = file
        self._folder = folder
        self._vocabulary: Linear | None = None
        weights = None if folder is None else folder / WEIGHTS
        self.weights = self._open(weights) if weights is not None and weights.is_file() else None

    def weights_of(self, spec: ExitSpec, kind: str) -> Weights:
        """The weights of an exit whose kind requires them. Raises `ExitError`."""
        if self.weights is None:
            raise ExitError(f"exit layer {spec.layer} has a {kind} head, but there is no exits.safetensors")
        return self.weights

    def vocabulary(self, spec: ExitSpec, rank: int) -> Linear:
        """The shared half (V, rank) of low-rank heads."""
        if self._vocabulary is None:
            weights = (
                self.weights_of(spec, "low-rank")
                if self._file.vocabulary is None
                else self._vocabulary_file()
            )
            shape = (self.decoder.shape.vocab_size, rank)
            self._vocabulary = weights.matrix("vocabulary.weight", shape)
        if self._vocabulary.shape[1] != rank:
            ranks = f"{self._vocabulary.shape[1]} and {rank}"
            raise ExitError(f"exits share one vocabulary and have one rank, not {ranks}")
        return self._vocabulary

    def _vocabulary_file(self) -> Weights:
        assert self._folder is not None and self._file.vocabulary is not None
        path = self._folder / self._file.vocabulary
        if Path(self._file.vocabulary).is_absolute() or path.suffix != ".safetensors":
            raise ExitError(
                f"vocabulary {self._file.vocabulary!r} is no relative path of a .safetensors file"
            )
        if not path.is_file():
            raise ExitError(f"{path} does not exist, which {DESCRIPTION} names as its vocabulary")
        return self._open(path)

    def _open(self, path: Path) -> Weights:
        return Weights(Checkpoint(path), "", source(path), self._reader)


class Exit:
    """One exit of a loaded model: its head, its probe and its thresholds."""

    def __init__(self, spec: ExitSpec, trained: TrainedHeads):
        decoder = trained.decoder
        self.layer = spec.layer
        self.head = spec.head
        self.probe_floor = spec.probe_floor
        self.vocabulary: Vocabulary = decoder.head  # features to logits
        self.block: int | None = None  # index of the head's own layer in the decoder
        self._spec = spec
        self._decoder = decoder
        self.mlp: MlpHead | None = None
        self._narrow: Linear | None = None
        at, shape = f"exits.{spec.layer}.", decoder.shape
        if spec.head is HeadKind.MLP:
            weights = trained.weights_of(spec, "mlp")
            self.mlp = MlpHead(weights, at + "mlp.", shape.hidden_size, shape.norm_eps, trained.ops)
        if spec.head is HeadKind.BLOCK:
            self.block = decoder.add_layer(trained.weights_of(spec, "block"), at + "block.")
        if spec.rank is not None:
            weights = trained.weights_of(spec, "low-rank")
            narrow = weights.matrix(at + "low_rank.weight", (spec.rank, shape.hidden_size))
            vocabulary = trained.vocabulary(spec, spec.rank)
            if spec.rerank is None:
                self._narrow, self.vocabulary = narrow, vocabulary
            else:
                adapter = _adapter(trained.weights_of(spec, "low-rank"), at + "rerank", shape.hidden_size)
                self.vocabulary = RerankHead(
                    trained.ops, narrow, vocabulary, decoder.head_rows(), spec.rerank, adapter
                )
        self._probe = _probe(trained.weights, at + "probe", shape.hidden_size)
        if spec.probe_floor is not None and self._probe is None:
            raise ExitError(f"exit layer {spec.layer} has a probe_floor, but no probe")

    @property
    def has_probe(self) -> bool:
        return self._probe is not None

    def threshold(self, criterion: Criterion, default: float) -> float:
        """Threshold of confidences by `criterion` at this exit."""
        own = self._spec.thresholds.get(criterion, self._spec.threshold)
        return default if own is None else own

    def features(self, hidden: torch.Tensor) -> torch.Tensor:
        """Input of `vocabulary`, (N, H) or (N, rank).

        `hidden` (N, H) are the states after the head's own block, if it has one.
        """
        normed = self._decoder.normed(hidden if self.mlp is None else self.mlp(hidden))
        return normed if self._narrow is None else self._narrow(normed)

    def probe(self, hidden: torch.Tensor) -> torch.Tensor:
        """The classifier's confidence (N,) in [0, 1] of hidden states (N, H)."""
        assert self._probe is not None
        return torch.sigmoid(self._probe(hidden).float())[:, 0]


def load_exits(
    file: ExitFile, folder: Path | None, decoder: Decoder, reader: WeightReader, last_only: bool
) -> list[Exit]:
    """The exits of a loaded model in order, or only the one behind its last layer.

    Raises `ExitError` or `CheckpointError`, one sentence each.
    """
    shape, depth = decoder.shape, decoder.depth
    check_exits(file, shape.num_layers, shape.hidden_size)
    specs = [spec for spec in file.exits if (spec.layer == depth if last_only else spec.layer < depth)]
    if not specs:
        layers = [spec.layer for spec in file.exits]
        raise ExitError(f"there is no exit to use at {depth} layers loaded; exits are at {layers}")
    if last_only:
        specs = [
            msgspec.structs.replace(spec, thresholds=spec.thresholds | spec.breach_thresholds)
            for spec in specs
        ]
    trained = TrainedHeads(file, folder, decoder, reader)
    return [Exit(spec, trained) for spec in specs]


def check_criterion(exits: list[Exit], criterion: Criterion) -> None:
    """Raises `ExitError` when an exit lacks what the criterion needs."""
    for exit_head in exits:
        if criterion is Criterion.CLASSIFIER and not exit_head.has_probe:
            raise ExitError(f"exit layer {exit_head.layer} has no probe, which criterion 'classifier' asks")


def _adapter(weights: Weights, at: str, hidden_size: int) -> Linear | None:
    """The matrix that maps features to the LM head's input when reranking, if there is one."""
    if at + ".weight" not in weights:
        return None
    return weights.matrix(at + ".weight", (hidden_size, hidden_size))


def _probe(weights: Weights | None, at: str, hidden_size: int) -> Linear | None:
    if weights is None or at + ".weight" not in weights:
        return None
    probe = weights.linear(at)
    if probe.shape != (1, hidden_size):
        raise CheckpointError(f"{at}.weight has shape {probe.shape}, not (1, {hidden_size})")
    return probe
