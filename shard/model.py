"""A model on a device: its loaded layers, and the exits of its mode. Knows no sequence and no KV."""

import os
from pathlib import Path

import msgspec
import torch

from shard.cli import default_cache_dir
from shard.drafts.head_file import head_folder
from shard.drafts.trained_head import TrainedHead
from shard.engine.kv_cache import block_bytes
from shard.exits.exit_heads import (
    DESCRIPTION,
    Exit,
    ExitFile,
    ExitSpec,
    check_criterion,
    load_exits,
    read_exits,
)
from shard.exits.settings import settings_of
from shard.messages import DrafterKind, Mode, ShardConfig
from shard.models.checkpoint import digest
from shard.models.load import Decoder, load_decoder
from shard.models.model_folder import unread_weights
from shard.models.shape import eos_token_ids, read_config
from shard.models.weight_cache import WeightReader
from shard.ops.choose import choose_ops
from shard.ops.plain import PlainOps
from shard.precision import Precision, precision_of
from shard.quality.certificate import heads_digest
from shard.quality.certificate_check import Served, objections
from shard.quality.weight_format import weight_format


class Model:
    """Loads a configuration's model, or takes the first layers of a loaded `decoder`.

    Raises `ValueError`, `OSError` or `MemoryError` with one sentence when it cannot be served.
    """

    def __init__(self, config: ShardConfig, reader: WeightReader, decoder: Decoder | None = None):
        self.config = config
        self.reader = reader
        self.settings = settings_of(config)
        self.precision = precision_in(config)
        folder = Path(config.model)
        described = read_config(folder)
        max_positions: int = described.max_position_embeddings
        self.max_tokens = min(config.max_total_tokens or max_positions, max_positions)
        self.eos_token_ids = eos_token_ids(folder, described)
        if decoder is None:
            self.decoder = load_decoder(folder, reader, config.num_layers, self.max_tokens)
        else:
            self.decoder = decoder.first_layers(config.num_layers or decoder.depth)
        self.exits = self._load_exits()
        self.draft_head = self._load_draft_head()
        heads = heads_digest(Path(config.exits)) if config.exits else ""
        self.version = self._version(heads)
        self.fingerprint = self._fingerprint(heads)
        self.warnings = self._warnings()

    @property
    def like(self) -> torch.Tensor:
        """An empty tensor of its device and of the storage type."""
        return self.reader.empty

    @property
    def empty_kv(self) -> torch.Tensor:
        """An empty tensor of its device and of the KV cache's type."""
        return self.like.new_empty(0, dtype=self.precision.kv)

    @property
    def block_bytes(self) -> int:
        """Bytes of one KV block in all layers together, including exit heads' own."""
        heads, num_layers = self.decoder.shape.heads, len(self.decoder.layers)
        return block_bytes(self.reader.ops, heads, num_layers, self.empty_kv)

    @property
    def weight_bytes(self) -> int:
        """Bytes held, including padding, widened weights and copies."""
        return sum(self.reader.num_bytes.values())

    @property
    def exit_thresholds(self) -> dict[int, float]:
        """The thresholds of requests that give none, by exit layer; `speculative` compares none."""
        if self.settings.mode.is_lossless:
            return {}
        criterion, default = self.settings.criterion, self.settings.threshold
        return {exit_head.layer: exit_head.threshold(criterion, default) for exit_head in self.exits}

    def begins_as(self, other: "Model") -> bool:
        """Each of its layers computes what the other's does, and it has no KV beside them but for drafts."""
        mine, its = self.config, other.config
        return (
            len(self.decoder.layers) - (self.draft_head is not None) == self.decoder.depth
            and self.decoder.depth <= other.decoder.depth
            and digest(Path(mine.model)) == digest(Path(its.model))
            and self.precision.label == other.precision.label
            and mine.block_tokens == its.block_tokens
        )

    def _version(self, heads: str) -> str:
        """Digest of all that answers depend on; of exits only in modes that do not verify."""
        config, mode = self.config, self.settings.mode
        parts = [digest(Path(config.model)), self.precision.label, str(self.decoder.depth)]
        if mode not in (Mode.FULL, Mode.SPECULATIVE):
            parts += [mode.value, *filter(None, [heads])]
        return "-".join(parts)

    def _fingerprint(self, heads: str) -> str:
        """The version, and all other settings that change how it is served."""
        config = msgspec.structs.replace(self.config, num_layers=self.decoder.depth, kv_cache_bytes=None)
        parts = [self.version, msgspec.json.encode(config).decode()]
        if config.exits:
            parts += [heads, (Path(config.exits) / DESCRIPTION).read_text()]
        return " ".join(parts)

    def _warnings(self) -> list[str]:
        """Sentences on files that are not read, and on what the certificate of exits does not cover."""
        config, settings = self.config, self.settings
        unread = unread_weights(Path(config.model))
        ignored = self._without_head()
        ignored += [f"Of the files in {config.model}, {', '.join(unread)} are not read."] if unread else []
        if config.replay_exits:
            return ignored
        served = Served(
            mode=settings.mode,
            fill=settings.fill,
            criterion=settings.criterion,
            dtype=self.precision.certified,
            model=digest(Path(config.model)),
            depth=self.decoder.depth,
            thresholds=self.exit_thresholds,
        )
        return ignored + objections(served, Path(config.exits) if config.exits else None)

    def _without_head(self) -> list[str]:
        """A sentence if a head should draft, and cannot."""
        if DrafterKind.HEAD not in self.config.drafters or self._runs_whole:
            return []
        return ["No trained head drafts here, as it reads a whole model's states in mode 'speculative'."]

    @property
    def _runs_whole(self) -> bool:
        """Every token runs through all of the model's layers, in passes that may verify drafts."""
        is_whole = self.decoder.depth == self.decoder.shape.num_layers
        return is_whole and self.settings.mode is Mode.SPECULATIVE and not self.exits

    def _load_draft_head(self) -> TrainedHead | None:
        """The head that drafts, if one is to. Raises `HeadFileError`."""
        if DrafterKind.HEAD not in self.config.drafters or not self._runs_whole:
            return None
        return TrainedHead(head_folder(self.config), self.decoder, self.reader)

    def _load_exits(self) -> list[Exit]:
        """The exits that the mode uses, in order. Raises `ExitError` and `CheckpointError`."""
        config, mode = self.config, self.settings.mode
        if mode is Mode.FULL or (mode is Mode.SPECULATIVE and not _drafts_at_exits(config)):
            return []
        folder = Path(config.exits) if config.exits else None
        layers = config.exit_layers or [self.decoder.depth] * (mode is Mode.CAPPED)
        file = read_exits(folder) if folder else ExitFile([ExitSpec(layer) for layer in layers])
        exits = load_exits(file, folder, self.decoder, self.reader, mode is Mode.CAPPED)
        check_criterion(exits, self.settings.criterion)
        return exits


def _drafts_at_exits(config: ShardConfig) -> bool:
    """`speculative` drafts at exits: told to, or told of no other way."""
    return DrafterKind.EXIT in config.drafters or not config.drafters


def ops_of(config: ShardConfig) -> PlainOps:
    """The operations for a configuration's device. Sets the number of compute threads."""
    num_threads = config.num_threads or os.cpu_count() or 1
    torch.set_num_threads(num_threads)
    cache = Path(config.cache_dir) if config.cache_dir else default_cache_dir()
    device = torch.device(config.device)
    return choose_ops(device, precision_in(config), config.block_tokens, num_threads, cache)


def reader_of(config: ShardConfig) -> WeightReader:
    """A reader of a configuration's model that shares nothing."""
    return WeightReader(ops_of(config), empty_of(config), weights=precision_in(config).weights)


def empty_of(config: ShardConfig) -> torch.Tensor:
    """An empty tensor of a configuration's device and storage type."""
    return torch.empty(0, dtype=precision_in(config).storage, device=config.device)


def precision_in(config: ShardConfig) -> Precision:
    """Types of a configuration's device, and the format of its model's matrices."""
    weights = weight_format(config.quantize, Path(config.model), config.device, config.exit_mode)
    return precision_of(config.device, config.dtype, weights, config.kv_cache_dtype)
